//! Random inputs from a seed that a failure can name.

/// A stream of random numbers (SplitMix64, Steele et al. 2014): small, and good enough to draw inputs from.
#[derive(Debug)]
pub(super) struct Draw {
    state: u64,
}

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// Uniform over `low..high`.
    pub(super) fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// `len` standard normal numbers (Box-Muller).
    pub(super) fn normals(&mut self, len: usize) -> Vec<f64> {
        (0..len)
            .map(|_| {
                let radius = (-2.0 * self.uniform(0.0, 1.0).max(f64::MIN_POSITIVE).ln()).sqrt();
                radius * (std::f64::consts::TAU * self.uniform(0.0, 1.0)).cos()
            })
            .collect()
    }

    /// `len` numbers, uniform over `low..high`.
    pub(super) fn uniforms(&mut self, len: usize, low: f64, high: f64) -> Vec<f64> {
        (0..len).map(|_| self.uniform(low, high)).collect()
    }

    /// `len` indices below `bound`.
    pub(super) fn indices(&mut self, len: usize, bound: usize) -> Vec<u32> {
        (0..len).map(|_| u32::try_from(self.below(bound)).expect("tests draw small indices")).collect()
    }
}
