//! The journal in real files: locks, and restarts of a whole table.

use std::path::Path;

use muster_daemon::config::BrokerConfig;
use muster_proto::{
    BrokerNode, View,
    link::{Publish, ReadRequest},
};
use rand::{SeedableRng as _, rngs::StdRng};

use super::{super::storage::Files, *};
use crate::{
    link::Link,
    shard::Publishing,
    table::{Opening, Source, Table},
    turn::Turn,
};

fn config(dir: &Path) -> BrokerConfig {
    BrokerConfig {
        journal_dir: Some(dir.join("journal")),
        ..BrokerConfig::default()
    }
}

/// A broker's table with every shard open at this epoch.
fn table(dir: &Path, epoch: u64) -> (Table, Opening) {
    let home = Home::open(&config(dir), dir).unwrap();
    let table = Table::new(Limits::for_tests(), 1 << 20, Source::Journal(home));
    table.apply(muster_daemon::clock::now(), &view(epoch), 1, epoch);
    let opening = table.open_waiting();
    (table, opening)
}

/// All shards are slot 1's, opened at this epoch.
fn view(epoch: u64) -> View {
    let nodes = [BrokerNode {
        slot: 1,
        incarnation: epoch,
        address: "unix:/nowhere".into(),
    }];
    View::next_above(epoch - 1, &View::default(), nodes)
}

fn publish(table: &Table, channel: &str, n: u64, shard_epoch: u64, data: Bytes) -> Publishing {
    let publish = Publish {
        seq: 1,
        channel: Bytes::copy_from_slice(channel.as_bytes()),
        data: Some(data),
        producer: Bytes::from_static(b"producer"),
        n,
        shard_epoch,
        age_ms: 0,
        attempt: 0,
    };
    let now = muster_daemon::clock::now();
    let link = Arc::new(Link::new(now));
    let mut turn = Turn::new(now);
    let mut rng = StdRng::seed_from_u64(n);
    let publishing = table.publish(&mut turn, &mut rng, &link, &publish);
    assert_eq!(table.commit(&mut turn), []);
    publishing
}

fn head(table: &Table, channel: &str) -> Option<Position> {
    let request = ReadRequest {
        channel: Bytes::copy_from_slice(channel.as_bytes()),
        ..ReadRequest::default()
    };
    table.read(&request, 0).ok()?.head
}

#[test]
fn a_broker_that_is_back_goes_on_with_every_channel_and_knows_every_key() {
    let dir = tempfile::tempdir().unwrap();
    let (first, opening) = table(dir.path(), 3);
    assert_eq!((opening.opened, opening.anew), (256, 0));
    let channels: Vec<String> = (0..50).map(|channel| channel.to_string()).collect();
    for (n, channel) in (1..).zip(&channels) {
        let staged = publish(&first, channel, n, 3, Bytes::from_static(b"1"));
        assert_eq!(staged, Publishing::Staged);
    }
    let before: Vec<_> = channels
        .iter()
        .map(|channel| head(&first, channel))
        .collect();
    drop(first);
    let (second, opening) = table(dir.path(), 4);
    assert_eq!((opening.opened, opening.publications), (256, 50));
    let after: Vec<_> = channels
        .iter()
        .map(|channel| head(&second, channel))
        .collect();
    assert_eq!(after, before);
    for (n, channel) in (1..).zip(&channels) {
        let again = publish(&second, channel, n, 4, Bytes::from_static(b"1"));
        assert_eq!(again, Publishing::Done(Ok(())));
    }
    let _ = publish(&second, "0", 100, 4, Bytes::from_static(b"2"));
    let expected = Position {
        offset: 2,
        ..before[0].unwrap()
    };
    assert_eq!(head(&second, "0"), Some(expected));
}

#[test]
fn a_shard_that_another_broker_has_is_opened_once_that_one_has_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = table(dir.path(), 1);
    let _ = publish(&first, "a", 1, 1, Bytes::from_static(b"1"));
    let before = head(&first, "a");
    let (second, opening) = table(dir.path(), 2);
    assert_eq!((opening.opened, opening.held), (0, 256));
    assert_eq!(head(&second, "a"), None);
    first.close(muster_daemon::clock::now());
    assert_eq!(second.open_waiting().opened, 256);
    assert_eq!(head(&second, "a"), before);
}

#[test]
fn the_highest_epoch_is_known_before_a_shard_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Home::open(&config(dir.path()), dir.path()).unwrap();
    assert_eq!(open().highest_epoch().unwrap(), 0);
    drop(table(dir.path(), 41));
    assert_eq!(open().highest_epoch().unwrap(), 41);
    let (_table, opening) = table(dir.path(), 40);
    assert_eq!((opening.opened, opening.failed), (0, 256));
}

#[test]
fn a_directory_that_others_can_enter_is_refused_with_what_to_do() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    std::fs::create_dir(&journal).unwrap();
    std::fs::set_permissions(&journal, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = Home::open(&config(dir.path()), dir.path()).unwrap_err();
    assert!(error.to_string().contains("chmod 700"), "{error}");
}

#[test]
fn segments_that_come_and_go_leave_no_descriptor_open() {
    let dir = tempfile::tempdir().unwrap();
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut files = Files::lock(dir.path().join("shard"), 1, false).unwrap();
    files.create(1, b"1").unwrap();
    let before = open_files();
    for sequence in 2..10 {
        files.create(sequence, b"2").unwrap();
        files.write_at(1, b"3").unwrap();
        files.remove(sequence - 1).unwrap();
    }
    assert_eq!(open_files(), before);
    assert_eq!(files.segments().unwrap(), [9]);
    assert_eq!(&files.read(9).unwrap()[..], b"23");
}
