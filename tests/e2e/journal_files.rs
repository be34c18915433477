//! The journal's files: damaged ones, and a disk that is really full.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use muster_tests::{Cluster, Raw, eventually, patience, tools};
use rustix::process::geteuid;
use serde_json::Value;

use crate::json;

/// Larger than what is free in any page that a journal has already.
const LARGE: usize = 20_000;

/// The segment in which this text stands, and where.
fn segment_with(journal: &Path, text: &str) -> (PathBuf, usize) {
    let shards = fs::read_dir(journal).expect("there is a journal");
    let files =
        shards.flat_map(|shard| fs::read_dir(shard.expect("an entry").path()).expect("a shard"));
    for file in files {
        let path = file.expect("an entry").path();
        let content = fs::read(&path).expect("it can be read");
        let mut places = content.windows(text.len());
        if let Some(at) = places.position(|bytes| bytes == text.as_bytes()) {
            return (path, at);
        }
    }
    panic!("no segment has {text}");
}

async fn check(cluster: &Cluster, options: &[&str]) -> (Option<i32>, String, String) {
    let dir = cluster.journal_dir();
    let mut arguments = vec![
        "journal",
        "check",
        "--dir",
        dir.to_str().expect("a path of text"),
    ];
    arguments.extend(options);
    let output = cluster.verb(&arguments).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    (output.status.code(), stdout, stderr)
}

async fn take_down(cluster: &mut Cluster) {
    let output = cluster.verb(&["down"]).await;
    assert!(output.status.success(), "{output:?}");
    cluster.ended().await;
}

#[tokio::test]
async fn a_damaged_shard_is_refused_found_put_aside_and_served_again() {
    let mut cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.publish("a", "\"needle 1\"").await;
    client.publish("a", "\"needle 2\"").await;
    let (code, _, stderr) = check(&cluster, &[]).await;
    assert_eq!(code, Some(1), "a broker has it");
    assert!(stderr.contains("orchestrator down"), "{stderr}");
    take_down(&mut cluster).await;
    let (code, stdout, _) = check(&cluster, &[]).await;
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("No damage."), "{stdout}");

    let (path, at) = segment_with(&cluster.journal_dir(), "needle 1");
    let mut content = fs::read(&path).unwrap();
    content[at] ^= 1;
    fs::write(&path, content).unwrap();
    let mut again = cluster.start_again().await;
    eventually("the broker refuses the shard", patience(), async || {
        let log = again.log();
        match log.contains("is damaged at byte") && log.contains("orchestrator journal check") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
    // The other shards are served.
    let mut client = Raw::connect(&again.url()).await;
    client.publish("b", "1").await;
    take_down(&mut again).await;

    let (code, stdout, stderr) = check(&again, &[]).await;
    assert_eq!(code, Some(1), "{stdout}");
    let place = format!("{} is damaged at byte ", path.display());
    assert!(stdout.contains(&place), "{stdout}");
    assert!(stderr.contains("--repair"), "{stderr}");
    let (code, _, stderr) = check(&again, &["--repair"]).await;
    assert_eq!(code, Some(2), "there is no terminal to ask on");
    assert!(stderr.contains("--yes"), "{stderr}");
    let (code, stdout, _) = check(&again, &["--repair", "--yes", "--json"]).await;
    assert_eq!(code, Some(0), "{stdout}");
    let report: Value = json(&stdout);
    let aside = report["repaired"][0].as_str().unwrap();
    assert!(
        fs::read(aside)
            .unwrap()
            .windows(8)
            .any(|it| it == b"needle 2")
    );

    let third = again.start_again().await;
    let mut client = Raw::connect(&third.url()).await;
    client.subscribe("a").await;
    client.publish("a", "3").await;
    assert_eq!(
        client.delivery().await,
        ("a".to_owned(), Some("3".to_owned()))
    );
    third.down().await;
}

/// A file system of this size in memory, for as long as this lives.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`: it cannot be mounted, which is said; in CI that fails.
    fn mount(test: &str, dir: PathBuf, size: &str) -> Option<Self> {
        if !geteuid().is_root() {
            tools::skipped(test, "only root may mount a file system");
            return None;
        }
        fs::create_dir(&dir).expect("a directory");
        let mount = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size},mode=0700"),
                "none",
            ])
            .arg(&dir)
            .output()
            .expect("mount runs");
        if mount.status.success() {
            return Some(Self(dir));
        }
        assert!(
            !tools::in_ci(),
            "root cannot mount a file system: {mount:?}"
        );
        tools::skipped(test, "not even root may mount a file system here");
        None
    }

    /// Leaves no page free.
    fn fill(&self) -> io::Result<()> {
        let mut ballast = fs::File::create(self.0.join("ballast"))?;
        for bytes in [1 << 20, 1 << 12] {
            let block = vec![1; bytes];
            while ballast.write_all(&block).is_ok() {}
        }
        Ok(())
    }

    fn make_room(&self) -> io::Result<()> {
        fs::remove_file(self.0.join("ballast"))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: processes that are about to end may still use it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_publications_and_loses_none_that_was_acknowledged() {
    const NAME: &str = "a_full_disk_refuses_publications_and_loses_none_that_was_acknowledged";
    let dir = tempfile::tempdir().unwrap();
    // As large as the shared memory of a container that nobody gave more.
    let Some(disk) = Tmpfs::mount(NAME, dir.path().join("journal"), "64m") else {
        return;
    };
    let cluster = Cluster::builder(1, 1)
        .env("MUSTER_BROKER__JOURNAL_DIR", disk.0.to_str().unwrap())
        .start()
        .await;
    let log = cluster.log();
    assert!(
        log.contains("smaller than broker.journal_bytes_max"),
        "{log}"
    );

    let mut subscriber = Raw::connect(&cluster.url()).await;
    subscriber.subscribe("a").await;
    let mut publisher = Raw::connect(&cluster.url()).await;
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    for number in 0..60 {
        match number {
            20 => disk.fill().unwrap(),
            40 => disk.make_room().unwrap(),
            _ => {}
        }
        let data = format!("{number} {}", "x".repeat(LARGE));
        let call = format!(r#"{{"channel":"a","data":"{data}"}}"#);
        let answer = publisher.call("#publish", &call).await;
        if answer.contains("PublishRefusedError") {
            refused += 1;
            assert!((20..40).contains(&number), "{number}: {answer}");
        } else {
            assert!(!answer.contains("error"), "{number}: {answer}");
            acknowledged.push(format!("\"{data}\""));
        }
    }
    assert!(refused >= 18, "{refused} were refused");
    let log = cluster.log();
    for said in [
        "The journal refuses publications.",
        "takes publications again",
    ] {
        assert!(log.contains(said), "{log}");
    }
    for data in &acknowledged {
        assert_eq!(subscriber.delivery().await.1.as_ref(), Some(data));
    }
    // What the disk has is whole.
    cluster.kill_broker(1).await;
    publisher.publish("a", "\"end\"").await;
    assert_eq!(subscriber.delivery().await.1.as_deref(), Some("\"end\""));
    cluster.down().await;
}
