//! Masking: XOR with a four-byte key that is repeated over the payload.

/// Masks or unmasks `payload`, whose first byte is masked with `mask[0]`.
pub(super) fn apply(payload: &mut [u8], mask: [u8; 4]) {
    // Whole blocks first: the compiler turns this loop into vector instructions.
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (blocks, rest) = payload.as_chunks_mut::<8>();
    for block in blocks {
        *block = (u64::from_ne_bytes(*block) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= key;
    }
}

/// The key for a payload that begins `offset` bytes after the one `mask` is for.
pub(super) const fn rotate(mask: [u8; 4], offset: usize) -> [u8; 4] {
    [
        mask[offset % 4],
        mask[(offset + 1) % 4],
        mask[(offset + 2) % 4],
        mask[(offset + 3) % 4],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_start_is_masked_like_byte_by_byte() {
        let mask = [0x11, 0x82, 0x43, 0xF4];
        for len in 0..70 {
            for start in 0..5 {
                let plain: Vec<u8> = (0..len).collect();
                let key = rotate(mask, start);
                let mut fast = plain.clone();
                apply(&mut fast, key);
                let slow: Vec<u8> = plain
                    .iter()
                    .enumerate()
                    .map(|(i, b)| b ^ mask[(start + i) % 4])
                    .collect();
                assert_eq!(fast, slow, "{len} bytes from {start}");
            }
        }
    }
}
