//! What updates leave behind: nothing.

use std::{collections::BTreeMap, fs};

use muster_tests::{Cluster, Raw, eventually, patience, status::Node};

use super::{assert_smooth, update};

const CLIENTS: usize = 40;
const UPDATES: usize = 5;

/// By which the orchestrator's file may differ: it has process ids, and the
/// figures of the last update.
const STATE_BYTES: u64 = 512;

/// What a cluster holds.
#[derive(Debug)]
struct Holding {
    /// Of each process.
    descriptors: BTreeMap<String, usize>,
    /// In the runtime directory, by the names without their last number.
    files: BTreeMap<String, usize>,
    /// What the orchestrator remembers there.
    state_bytes: u64,
}

impl Holding {
    fn is_as(&self, before: &Self) -> bool {
        self.descriptors == before.descriptors
            && self.files == before.files
            && self.state_bytes <= before.state_bytes + STATE_BYTES
    }
}

async fn holding(cluster: &Cluster) -> Result<Holding, String> {
    let status = cluster.status().await?;
    let mut descriptors = BTreeMap::new();
    let name = |node: &Node| format!("{}-{}", node.role, node.slot);
    let nodes = status.nodes.iter().map(|node| (name(node), node.pid));
    for (name, pid) in nodes.chain([("orchestrator".to_owned(), status.pid)]) {
        let held = fs::read_dir(format!("/proc/{pid}/fd"));
        let held = held.map_err(|error| format!("{name}: {error}"))?;
        descriptors.insert(name, held.count());
    }
    let mut files = BTreeMap::new();
    let dir = cluster.runtime_dir();
    for entry in fs::read_dir(&dir).map_err(|error| error.to_string())? {
        let name = entry.map_err(|error| error.to_string())?.file_name();
        let name = name.to_string_lossy();
        let kind = name.trim_end_matches(".sock");
        let kind = kind.trim_end_matches(|letter: char| letter.is_ascii_digit());
        *files.entry(kind.to_owned()).or_insert(0) += 1;
    }
    let state = fs::metadata(dir.join("state.json")).map_err(|error| error.to_string())?;
    Ok(Holding {
        descriptors,
        files,
        state_bytes: state.len(),
    })
}

#[tokio::test]
async fn after_five_updates_the_cluster_holds_what_it_held_before() {
    let cluster = Cluster::start(2, 2).await;
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        let mut client = Raw::connect(&cluster.url()).await;
        client.subscribe(&format!("channel:{}", n % 7)).await;
        clients.push(client);
    }
    // How an update ended is remembered, and an orchestrator holds more for
    // processes that it has taken over than for those that it has started.
    assert_smooth(&update(&cluster).await, CLIENTS as u64);
    let before = holding(&cluster).await.expect("the cluster runs");
    for round in 1..=UPDATES {
        assert_smooth(&update(&cluster).await, CLIENTS as u64);
        // What has ended is noticed a little later by those that were linked to it.
        eventually(
            &format!("it is as before {round}"),
            patience(),
            async || {
                let now = holding(&cluster).await?;
                if now.is_as(&before) {
                    Ok(())
                } else {
                    Err(format!("{now:?} instead of {before:?}"))
                }
            },
        )
        .await;
    }
    for client in &mut clients {
        assert!(client.is_alive().await);
    }
    cluster.down().await;
}
