//! Normal noise that any range of a tensor can make alone, to the same bits on every machine.
//!
//! Philox 4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3") is a function of a counter and
//! a key: no state, no order. The seed is the key; the counter is the block of four values and the stream. Box-Muller in
//! f64 turns words into normal values; logarithm, sine and cosine come from `libm` in Rust, not from the platform, so
//! that two machines agree.

use std::f64::consts::TAU;

use crate::ops::NoiseKey;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Golden ratio and sqrt(3) - 1, as 0.32 fixed point: what the key is bumped by between rounds.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Philox 4x32 with 10 rounds: four words out of a counter of four and a key of two.
#[must_use]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Four standard normal values: those of indices `4 * block` to `4 * block + 3` of a stream.
#[must_use]
pub fn normal_block(key: NoiseKey, block: u64) -> [f64; 4] {
    let halves = |word: u64| [word as u32, (word >> 32) as u32];
    let ([low, high], [stream_low, stream_high]) = (halves(block), halves(key.stream));
    let words = philox([low, high, stream_low, stream_high], halves(key.seed));
    let (a, b) = box_muller(words[0], words[1]);
    let (c, d) = box_muller(words[2], words[3]);
    [a, b, c, d]
}

/// Value `index` of a stream, standard normal.
#[must_use]
pub fn normal_at(key: NoiseKey, index: u64) -> f64 {
    normal_block(key, index / 4)[(index % 4) as usize]
}

/// Two independent normal values of two words (Box and Muller, 1958); |z| is at most 6.66.
fn box_muller(radius: u32, angle: u32) -> (f64, f64) {
    const SCALE: f64 = 1.0 / (1u64 << 32) as f64;
    // In (0, 1], so that the logarithm is finite.
    let uniform = (f64::from(radius) + 1.0) * SCALE;
    let radius = (-2.0 * libm::log(uniform)).sqrt();
    let (sin, cos) = libm::sincos(TAU * (f64::from(angle) * SCALE));
    (radius * cos, radius * sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_gives_the_known_answers_of_random123() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn a_value_alone_is_the_value_of_its_block() {
        let key = NoiseKey { seed: 0x1234_5678_9abc_def0, stream: 0xfedc_ba98_7654_3210 };
        for index in [0, 1, 2, 3, 4, 1023, u64::MAX] {
            let block = normal_block(key, index / 4);
            assert_eq!(normal_at(key, index).to_bits(), block[(index % 4) as usize].to_bits());
        }
    }

    #[test]
    fn values_are_standard_normal_and_streams_do_not_correlate() {
        let n = 200_000;
        let draw = |stream| (0..n).map(move |index| normal_at(NoiseKey { seed: 42, stream }, index));
        let mean = draw(1).sum::<f64>() / n as f64;
        let square = draw(1).map(|z| z * z).sum::<f64>() / n as f64;
        let fourth = draw(1).map(|z| z.powi(4)).sum::<f64>() / n as f64;
        let cross = draw(1).zip(draw(2)).map(|(a, b)| a * b).sum::<f64>() / n as f64;
        // Five standard errors of each estimate.
        let error = 5.0 / (n as f64).sqrt();
        assert!(mean.abs() < error, "{mean}");
        assert!((square - 1.0).abs() < 2f64.sqrt() * error, "{square}");
        assert!((fourth - 3.0).abs() < 96f64.sqrt() * error, "{fourth}");
        assert!(cross.abs() < error, "{cross}");
    }
}
