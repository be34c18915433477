//! Values that every release must agree on: a process that computes others
//! would look for channels at the wrong owner.

use muster_proto::{SHARDS, assign, shard_of};
use xxhash_rust::xxh3::xxh3_64;

#[test]
fn the_shard_of_a_channel_never_changes() {
    let longest = "x".repeat(512);
    let vectors: [(&str, u64, usize); 13] = [
        ("", 0x2d06_8005_38d3_94c2, 194),
        ("a", 0xe6c6_32b6_1e96_4e1f, 31),
        ("foo", 0xab6e_5f64_077e_7d8a, 138),
        ("chat", 0xd227_fc9c_d693_25d8, 216),
        ("lobby:1", 0x91cf_e8f1_4bbf_0e54, 84),
        ("lobby:2", 0xa282_e258_e373_2f39, 57),
        ("game/42/state", 0xb911_c625_410c_1fd0, 208),
        ("__proto__", 0xaca2_79e3_17ac_006e, 110),
        ("Grüße", 0xb40c_17e2_196d_97d8, 216),
        ("日本語", 0x11fe_c42c_8060_50b7, 183),
        ("🎮", 0x27c2_7351_e931_35d4, 212),
        ("\u{0}", 0xc44b_dff4_074e_ecdb, 219),
        (&longest, 0x12a8_1a98_c393_ea66, 102),
    ];
    for (name, hash, shard) in vectors {
        let found = (xxh3_64(name.as_bytes()), shard_of(name).index());
        assert_eq!(found, (hash, shard), "channel {name:?}: {:#x}", found.0);
    }
}

#[test]
fn the_assignment_to_brokers_never_changes() {
    let digests: Vec<u64> = (1..=8).map(digest).collect();
    let expected = [
        0xbfff_ee7f_c1b1_22b6,
        0xd34d_deba_ed0d_e29f,
        0xfbec_acc6_6b51_e3be,
        0xcdae_cdb8_8b5d_93a8,
        0x8e6d_dd77_af72_62d1,
        0x4739_0fe4_c18a_8ce5,
        0xcf5e_0bc2_1cae_6a0c,
        0x6d58_6581_1d19_d451,
    ];
    assert_eq!(digests, expected, "{digests:#x?}");
}

/// A hash over the owners' slots when there are brokers in slots 1 … `brokers`.
fn digest(brokers: u32) -> u64 {
    let slots: Vec<u32> = (1..=brokers).collect();
    let owners = assign(&slots).expect("there are brokers");
    assert_eq!(owners.len(), SHARDS);
    let bytes: Vec<u8> = owners.iter().flat_map(|slot| slot.to_le_bytes()).collect();
    xxh3_64(&bytes)
}
