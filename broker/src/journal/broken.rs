//! What a simulation makes a journal do wrong.

use muster_wire::Millis;

use crate::keys::Keys;

/// Rules of the journal that a simulation breaks, to show that they matter.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BrokenRules {
    /// A3: what is staged counts as written, and is written with the next turn.
    pub order: bool,
    /// C2: half a record stays after a write that failed.
    pub truncation: bool,
    /// B3: keys are forgotten at recovery.
    pub keys: bool,
    /// A shard may be opened at an earlier epoch than before.
    pub epochs: bool,
    /// C5: every recovery begins new generations.
    pub generations: bool,
    /// C5: what was written before a loss of power counts as still there.
    pub power: bool,
    /// B3: a new segment does not carry the keys of earlier ones.
    pub carried_keys: bool,
    /// B3: a new segment does not carry the channels of earlier ones.
    pub carried_channels: bool,
    /// B3: a new segment does not carry the histories of earlier ones.
    pub carried_histories: bool,
    /// B2: a segment goes although something of it is retained.
    pub retention: bool,
    /// C2: offsets of publications that were refused are used up.
    pub offsets: bool,
    /// C2: which publications were refused is not remembered.
    pub refused: bool,
    /// C4: a torn end stays, and what is appended follows it.
    pub torn_end: bool,
}

impl BrokenRules {
    /// Every rule is kept.
    pub const NONE: Self = Self {
        order: false,
        truncation: false,
        keys: false,
        epochs: false,
        generations: false,
        power: false,
        carried_keys: false,
        carried_channels: false,
        carried_histories: false,
        retention: false,
        offsets: false,
        refused: false,
        torn_end: false,
    };

    /// What is done wrong about keys when a shard opens.
    pub(super) fn break_keys(&self, keys: &mut Keys, now: Millis) {
        if self.keys {
            keys.clear(now);
        }
        if self.refused {
            keys.break_refused();
        }
    }
}
