//! What a shard retains of segments before the newest is read again when
//! somebody asks for it.

use super::*;

/// A disk with several segments of which everything is retained, and what that is.
fn several_segments() -> (MemoryDisk, Vec<Content>) {
    let mut bench = Bench::new();
    for index in 0..60 {
        let data = format!("publication {index}");
        let channel = CHANNELS[index % CHANNELS.len()];
        bench.publish(&[(channel, &data)]).unwrap();
    }
    assert!(bench.journal.segments.len() > 3, "{bench:?}");
    let content = bench.content();
    (bench.killed(), content)
}

/// The segments before the newest.
fn earlier(bench: &Bench) -> Vec<u64> {
    let segments = bench.journal.segments.iter();
    let mut earlier: Vec<_> = segments.map(|segment| segment.sequence).collect();
    earlier.pop();
    earlier
}

#[test]
fn what_earlier_segments_have_is_there_when_somebody_asks_for_it() {
    let (disk, content) = several_segments();
    let mut again = Bench::open(&disk, 2, clock(5)).unwrap();
    assert_eq!(again.content(), content);
    // Once is enough.
    for sequence in earlier(&again) {
        disk.put(sequence, Vec::new());
    }
    assert_eq!(again.content(), content);
}

#[test]
fn what_the_newest_segment_has_is_in_memory() {
    let (disk, content) = several_segments();
    let mut again = Bench::open(&disk, 2, clock(5)).unwrap();
    for sequence in earlier(&again) {
        disk.put(sequence, Vec::new());
    }
    let (name, head, all) = &content[1];
    let key = again.log.find(name).unwrap();
    again.log.load(key, head.offset - 1);
    let last: Vec<_> = again.log.after(key, head.offset - 1).collect();
    assert_eq!(last, [(head.offset, all[all.len() - 1].1.as_ref())]);
    assert_eq!(again.log.tail_start(key).offset, 0);
}

#[test]
fn what_cannot_be_read_again_is_not_retained_and_what_follows_it_is() {
    type Harm = fn(&mut Vec<u8>);
    let harms: [Harm; 3] = [
        Vec::clear,
        |content| {
            let middle = content.len() / 2;
            content[middle] ^= 1;
        },
        |content| content.truncate(content.len() - 1),
    ];
    for harm in harms {
        let (disk, content) = several_segments();
        let mut again = Bench::open(&disk, 2, clock(5)).unwrap();
        let harmed = earlier(&again)[1];
        let storage = Memory::new(&disk);
        let mut segment = storage.reader(harmed).read().unwrap();
        harm(&mut segment);
        disk.put(harmed, segment);
        // Whoever asks first finds out.
        again.content();
        let found = again.content();
        let mut lost = 0;
        for ((name, head, kept), (name_before, head_before, before)) in found.iter().zip(&content) {
            assert_eq!((name, head), (name_before, head_before));
            assert!(before.ends_with(kept), "{kept:?}");
            let start = Position {
                offset: head.offset - kept.len() as u64,
                ..*head
            };
            let key = again.log.find(name).unwrap();
            assert_eq!(again.log.tail_start(key), start);
            let earlier = Position {
                offset: start.offset.wrapping_sub(1),
                ..start
            };
            assert!(!again.log.reaches_back_to(key, earlier));
            lost += before.len() - kept.len();
        }
        assert!((1..60).contains(&lost), "{lost}");
        // The last publications of the shard are in the tails: no segment goes
        // that is needed.
        assert_eq!(again.log.in_tails(), 60 - lost);
        again.publish(&[("a", "goes on")]).unwrap();
        let key = again.log.find(b"a").unwrap();
        let last = again.log.after(key, 0).last();
        assert_eq!(last.unwrap().1.unwrap(), "goes on");
    }
}
