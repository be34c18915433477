//! The journal in real files: locks, and restarts of a whole table.

use std::path::Path;

use muster_daemon::config::BrokerConfig;
use muster_proto::{
    BrokerNode, View,
    link::{Publish, ReadRequest},
};
use rand::{SeedableRng as _, rngs::StdRng};

use super::{
    super::{
        check::{CheckError, Journals},
        storage::Files,
    },
    *,
};
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
    let mut content = b"what was there".to_vec();
    files.read(9, &mut content).unwrap();
    assert_eq!(content, b"23");
}

/// Writes a shard's journal of three segments, and closes it; returns them and
/// the position of its channel.
fn three_segments(dir: &Path) -> (Vec<PathBuf>, Position) {
    let mut bench = Bench::open(&MemoryDisk::default(), 1, this_boot(0)).unwrap();
    while bench.journal.segments.len() < 3 {
        bench.publish(&[("a", &"x".repeat(100))]).unwrap();
        bench.journal.tidy(&bench.log, 0, false);
    }
    bench.publish(&[("a", "1"), ("a", "2")]).unwrap();
    let head = bench.log.head(bench.log.find(b"a").unwrap());
    let disk = bench.disk.clone();
    bench.journal.close();
    let memory = Memory::new(&disk);
    let mut files = Files::lock(dir.join("shard-007"), 1, false).unwrap();
    let mut paths = Vec::new();
    for sequence in memory.segments().unwrap() {
        let content = memory.reader(sequence).read().unwrap();
        files.create(sequence, &content).unwrap();
        paths.push(files.name(sequence));
    }
    (paths, head)
}

fn flip(path: &Path, at: usize) {
    let mut content = std::fs::read(path).unwrap();
    content[at] ^= 1;
    std::fs::write(path, content).unwrap();
}

fn this_boot(now: u64) -> Clock {
    Clock {
        boot: home::boot_id().unwrap(),
        ..clock(now)
    }
}

/// The shard as a broker would open it.
fn reopen(dir: &Path) -> Result<Recovered, RecoveryError> {
    let files = Files::lock(dir.join("shard-007"), 2, false).unwrap();
    open(
        Box::new(files),
        SHARD,
        2,
        this_boot(10),
        &Limits::for_tests(),
        options(),
    )
}

#[test]
fn a_journal_that_a_broker_has_is_not_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let (table, _) = table(dir.path(), 1);
    let journal = dir.path().join("journal");
    let error = Journals::open(&journal).unwrap_err();
    assert!(
        matches!(error, CheckError::Held { shard: 0, .. }),
        "{error}"
    );
    drop(table);
    assert_eq!(
        Journals::open(&journal).unwrap().check().unwrap().len(),
        256
    );
    let error = Journals::open(dir.path()).unwrap_err();
    assert!(matches!(error, CheckError::Nothing(_)), "{error}");
}

#[test]
fn without_damaged_segments_before_the_newest_every_position_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (paths, head) = three_segments(dir.path());
    flip(&paths[1], 300);
    assert!(reopen(dir.path()).is_err());
    let journals = Journals::open(dir.path()).unwrap();
    let found = journals.check().unwrap().remove(0);
    assert_eq!((found.shard, found.segments), (7, 3));
    let damage = found.damage.unwrap();
    assert_eq!((&damage.file, &damage.aside[..]), (&paths[1], &paths[..2]));
    assert!(damage.offset <= 300 && !damage.is_all);
    assert_eq!(journals.repair().unwrap().len(), 2);
    let found = journals.check().unwrap().remove(0);
    assert_eq!((found.damage, found.segments), (None, 1));
    drop(journals);
    let again = reopen(dir.path()).unwrap();
    assert!(!again.recovery.is_anew);
    let key = again.log.find(b"a").unwrap();
    assert_eq!(again.log.head(key), head);
    assert_eq!(again.log.keys().knows(b"p", 1), Known::Yes);
}

#[test]
fn without_a_damaged_newest_segment_every_channel_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (paths, _) = three_segments(dir.path());
    let end = std::fs::read(&paths[2]).unwrap().len();
    // In the first publication of two.
    flip(&paths[2], end - 150);
    assert!(reopen(dir.path()).is_err());
    let journals = Journals::open(dir.path()).unwrap();
    let damage = journals.check().unwrap().remove(0).damage.unwrap();
    assert!(damage.is_all);
    assert_eq!((&damage.file, damage.aside.len()), (&paths[2], 3));
    let renamed = journals.repair().unwrap();
    assert!(renamed.iter().all(|path| path.exists()), "{renamed:?}");
    drop(journals);
    let again = reopen(dir.path()).unwrap();
    assert_eq!(again.log.find(b"a"), None);
    // Nothing is put aside twice under one name.
    drop(again);
    flip(&dir.path().join("shard-007/0000000001.segment"), 70);
    let journals = Journals::open(dir.path()).unwrap();
    let again = journals.repair().unwrap();
    assert!(again.iter().all(|path| !renamed.contains(path)));
}
