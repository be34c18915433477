//! The journal in real files: locks, restarts of a whole table, how long they
//! take.

use std::{path::Path, time::Instant};

use muster_daemon::{ByteSize, config::BrokerConfig};
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
    let (table, opening, _) = table_with(&config(dir), Limits::for_tests(), dir, epoch);
    (table, opening)
}

/// The same, and how long the opening took.
fn table_with(
    config: &BrokerConfig,
    limits: Limits,
    dir: &Path,
    epoch: u64,
) -> (Table, Opening, Duration) {
    let home = Home::open(config, dir).unwrap();
    let table = Table::new(limits, 1 << 20, Source::Journal(home));
    table.apply(muster_daemon::clock::now(), &view(epoch), 1, epoch);
    let start = instant();
    let opening = table.open_waiting();
    (table, opening, start.elapsed())
}

/// One without journals.
fn memory_table(limits: Limits) -> Table {
    let table = Table::new(limits, 1 << 20, Source::Nothing);
    table.apply(Millis(0), &view(1), 1, 1);
    table
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

/// `MUSTER_TEST_JOURNAL_MIB=100 cargo test --release -p muster-broker --lib recovery_time --
/// --ignored --nocapture`; `MUSTER_TEST_DATA_BYTES` per publication, in
/// `MUSTER_TEST_JOURNAL_DIR`.
#[test]
#[ignore = "it measures"]
fn recovery_time() {
    let variable = |name: &str, default: usize| {
        let value = std::env::var(name).ok();
        value.map_or(default, |value| value.parse().unwrap())
    };
    let bytes = variable("MUSTER_TEST_JOURNAL_MIB", 1) << 20;
    let data = Bytes::from(vec![b'1'; variable("MUSTER_TEST_DATA_BYTES", 200)]);
    let parent = std::env::var_os("MUSTER_TEST_JOURNAL_DIR").unwrap_or("/tmp".into());
    let dir = tempfile::tempdir_in(parent).unwrap();
    let large = BrokerConfig {
        journal_bytes_max: ByteSize::mib(1 << 20),
        ..config(dir.path())
    };
    let wide = || Limits {
        tail_bytes_max: usize::MAX,
        tail_age: Duration::from_secs(3600),
        ..Limits::for_tests()
    };
    let count = bytes / (data.len() + 80);
    let without = memory_table(wide());
    let start = instant();
    publish_many(&without, count, &data);
    let unjournaled = start.elapsed();
    drop(without);
    let open = |epoch| table_with(&large, wide(), dir.path(), epoch);
    let (first, _, empty) = open(1);
    let start = instant();
    publish_many(&first, count, &data);
    let appending = start.elapsed();
    drop(first);
    let (_second, opening, elapsed) = open(2);
    println!(
        "{} publications in {} bytes, {:.0} ns each to append ({:.0} ns without a journal); opened \
         256 empty shards in {empty:?}, these in {elapsed:?}",
        opening.publications,
        opening.bytes,
        appending.as_nanos() as f64 / count as f64,
        unjournaled.as_nanos() as f64 / count as f64,
    );
    assert_eq!(usize::try_from(opening.publications).unwrap(), count);
}

/// Publishes on 2000 channels, a thousand publications in one turn.
fn publish_many(table: &Table, count: usize, data: &Bytes) {
    let channels: Vec<String> = (0..2000).map(|it| format!("channel {it}")).collect();
    let link = Arc::new(Link::new(Millis(0)));
    let mut rng = StdRng::seed_from_u64(1);
    for first in (0..count).step_by(1000) {
        let mut turn = Turn::new(muster_daemon::clock::now());
        for index in first..count.min(first + 1000) {
            let publish = Publish {
                seq: index as u64 + 1,
                channel: Bytes::copy_from_slice(channels[index % channels.len()].as_bytes()),
                data: Some(data.clone()),
                producer: Bytes::from(format!("producer {}", index % 100)),
                n: index as u64 + 1,
                shard_epoch: 1,
                age_ms: 0,
                attempt: 0,
            };
            let staged = table.publish(&mut turn, &mut rng, &link, &publish);
            assert_eq!(staged, Publishing::Staged);
        }
        assert_eq!(table.commit(&mut turn), []);
    }
}

#[expect(clippy::disallowed_methods, reason = "a measurement needs a clock")]
fn instant() -> Instant {
    Instant::now()
}
