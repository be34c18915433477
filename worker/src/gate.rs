//! The accept gate: keeps connections spread evenly over the workers.
//!
//! All workers accept from one inherited socket, and the kernel wakes the
//! busiest most. So each worker writes how many connections it has into a small
//! shared file and stays away from the socket while it has too many
//! (delivery.md E4). A file that is read and written with `pread` and `pwrite`
//! needs no mapping, hence no unsafe code, and cannot raise SIGBUS.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, time::Duration};

use muster_wire::Millis;

/// Slots in the file: workers a cluster may have.
pub(crate) const GATE_SLOTS: usize = 256;
/// Bytes of one slot: a cache line.
const SLOT_BYTES: usize = 64;
/// A slot not written for this long belongs to nobody alive.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// Connections above 9/8 of the mean that are always allowed.
const SLACK: u64 = 8;

/// What a worker says about itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) connections: u32,
    /// Takes new connections: neither starting, full nor draining.
    pub(crate) accepting: bool,
    pub(crate) written: Millis,
}

/// This worker's place in the shared file.
#[derive(Debug)]
pub(crate) struct Gate {
    file: File,
    index: usize,
}

impl Gate {
    /// Opens the file that the orchestrator made; `slot` counts from 1.
    pub(crate) fn open(path: &Path, slot: u32) -> io::Result<Self> {
        let index = usize::try_from(slot).unwrap_or(usize::MAX).wrapping_sub(1);
        if index >= GATE_SLOTS {
            return Err(io::Error::other(format!(
                "worker slot {slot} is not within 1 to {GATE_SLOTS}"
            )));
        }
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Self { file, index })
    }

    /// Writes this worker's slot.
    pub(crate) fn write(&self, slot: Slot) -> io::Result<()> {
        self.file
            .write_all_at(&encode(slot), (self.index * SLOT_BYTES) as u64)
    }

    /// Whether this worker, being `own`, may take another connection now.
    pub(crate) fn may_accept(&self, own: Slot, now: Millis) -> io::Result<bool> {
        let mut bytes = [0; GATE_SLOTS * SLOT_BYTES];
        let len = self.file.read_at(&mut bytes, 0)?;
        let slots = bytes[..len].chunks_exact(SLOT_BYTES).map(decode);
        let others = slots
            .enumerate()
            .filter(|(index, _)| *index != self.index)
            .map(|(_, slot)| slot);
        Ok(may_accept(own, others, now))
    }
}

/// A worker that takes nobody answers for the cluster only when it is full.
///
/// The rule: at most 9/8 of the mean over the living and accepting, and a
/// little; the lowest always accepts.
fn may_accept(own: Slot, others: impl Iterator<Item = Slot>, now: Millis) -> bool {
    let (mut count, mut sum, mut lowest) = (1, u64::from(own.connections), own.connections);
    for slot in others {
        if slot.accepting && now.since(slot.written) < STALE_AFTER {
            count += 1;
            sum += u64::from(slot.connections);
            lowest = lowest.min(slot.connections);
        }
    }
    if !own.accepting {
        return count == 1;
    }
    own.connections == lowest
        || u64::from(own.connections) * 8 * count <= sum * 9 + SLACK * 8 * count
}

fn encode(slot: Slot) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&slot.connections.to_le_bytes());
    bytes[4] = u8::from(slot.accepting);
    bytes[8..].copy_from_slice(&slot.written.0.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Slot {
    let mut connections = [0; 4];
    connections.copy_from_slice(&bytes[..4]);
    let mut written = [0; 8];
    written.copy_from_slice(&bytes[8..16]);
    Slot {
        connections: u32::from_le_bytes(connections),
        accepting: bytes[4] != 0,
        written: Millis(u64::from_le_bytes(written)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(10_000);

    fn slot(connections: u32) -> Slot {
        Slot {
            connections,
            accepting: true,
            written: NOW,
        }
    }

    fn allows(own: u32, others: &[Slot]) -> bool {
        may_accept(slot(own), others.iter().copied(), NOW)
    }

    #[test]
    fn a_worker_far_above_the_mean_waits_and_the_lowest_never_does() {
        assert!(!allows(200, &[slot(100), slot(100)]));
        assert!(allows(100, &[slot(200), slot(100)]));
        assert!(allows(0, &[]));
        assert!(allows(8, &[slot(0)]));
    }

    #[test]
    fn a_slot_that_is_dead_or_does_not_accept_counts_for_nothing() {
        let dead = Slot {
            written: Millis(9_000),
            ..slot(0)
        };
        let draining = Slot {
            accepting: false,
            ..slot(0)
        };
        assert!(!allows(100, &[slot(0)]));
        assert!(allows(100, &[dead, draining]));
    }

    #[test]
    fn a_full_worker_accepts_to_say_so_only_when_all_are_full() {
        let full = |connections| Slot {
            accepting: false,
            ..slot(connections)
        };
        let may = |own, other| may_accept(own, [other].into_iter(), NOW);
        assert!(!may(full(10), slot(2)));
        assert!(may(full(10), full(10)));
    }

    #[test]
    fn what_one_worker_writes_the_others_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate");
        std::fs::write(&path, [0; GATE_SLOTS * SLOT_BYTES]).unwrap();
        let first = Gate::open(&path, 1).unwrap();
        let second = Gate::open(&path, 2).unwrap();
        first.write(slot(1000)).unwrap();
        second.write(slot(10)).unwrap();
        assert!(!first.may_accept(slot(1000), NOW).unwrap());
        assert!(second.may_accept(slot(10), NOW).unwrap());
        second
            .write(Slot {
                accepting: false,
                ..slot(10)
            })
            .unwrap();
        assert!(first.may_accept(slot(1000), NOW).unwrap());
    }

    #[test]
    fn a_slot_outside_the_file_is_refused() {
        for slot in [0, 257] {
            let error = Gate::open(Path::new("/dev/null"), slot).unwrap_err();
            assert!(error.to_string().contains("not within 1 to 256"), "{error}");
        }
    }

    #[test]
    fn eight_workers_that_follow_the_gate_stay_within_a_seventh_of_the_mean() {
        // The kernel's preference at its worst: always the first worker that listens.
        let mut counts = [0_u32; 8];
        for _ in 0..4000 {
            let taker = (0..8)
                .find(|&index| {
                    let others = (0..8)
                        .filter(|&other| other != index)
                        .map(|other| slot(counts[other]));
                    may_accept(slot(counts[index]), others, NOW)
                })
                .unwrap();
            counts[taker] += 1;
        }
        assert!(
            counts.iter().all(|&count| f64::from(count) < 500.0 * 1.15),
            "{counts:?}"
        );
    }
}
