//! One body in plain Rust, compiled once per instruction set: [`vectorized!`], and what such bodies are made of.
//!
//! The compiler turns loops over fixed numbers of lanes into vector instructions, so bodies stay readable and safe.
//! Everything a body calls is `#[inline(always)]`: a function of its own would be compiled for the baseline.

use half::bf16;

/// Values of an accumulator: enough sums side by side to hide the latency of an addition on every instruction set.
pub(crate) const LANES: usize = 64;

/// Least values that a thread is woken for.
const PART_VALUES: usize = 16 * 1024;

/// Defines `fn name(isa: Isa, ...)` whose body runs with the instructions of `isa`, or of the best that this machine
/// has if that is less. The constant says whether the body may use fused multiplications, see [`mul_add`].
macro_rules! vectorized {
    (
        $(#[$attribute:meta])*
        $vis:vis fn $name:ident<const $fma:ident: bool $(, $value:ident: $bound:path)*>
        ($isa:ident: Isa $(, $argument:ident: $type:ty)* $(,)?) $(-> $out:ty)? $body:block
    ) => {
        $(#[$attribute])*
        $vis fn $name<$($value: $bound),*>($isa: $crate::cpu::isa::Isa $(, $argument: $type)*) $(-> $out)? {
            #[inline(always)]
            fn body<const $fma: bool $(, $value: $bound)*>($($argument: $type),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512<$($value: $bound),*>($($argument: $type),*) $(-> $out)? {
                body::<true $(, $value)*>($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$($value: $bound),*>($($argument: $type),*) $(-> $out)? {
                body::<true $(, $value)*>($($argument),*)
            }

            match $isa.min($crate::cpu::isa::Isa::detect()) {
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::isa::Isa::Avx512 | $crate::cpu::isa::Isa::Avx512Bf16 => {
                    // SAFETY: `detect` found these instructions.
                    unsafe { avx512::<$($value),*>($($argument),*) }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::isa::Isa::Avx2 => {
                    // SAFETY: `detect` found these instructions.
                    unsafe { avx2::<$($value),*>($($argument),*) }
                }
                _ => body::<false $(, $value)*>($($argument),*),
            }
        }
    };
}
pub(crate) use vectorized;

/// A float as it is stored; sums are made in f32.
pub(crate) trait Value: Copy + Send + Sync {
    /// Exactly.
    fn widen(self) -> f32;
    /// To the nearest, ties to even.
    fn round(value: f32) -> Self;
}

impl Value for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }
}

impl Value for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        // Not `bf16::from_f32`: its branches keep a loop scalar.
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { quiet_nan } else { rounded } as u16)
    }
}

/// `a * b + c`, fused if `FMA`; without the instruction `f32::mul_add` is a call into libm.
#[inline(always)]
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Adding and taking away 1.5 * 2^23 rounds a float below 2^22 to an integer, ties to even.
const ROUNDER: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has so few bits that its product with an exponent is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Minimax polynomial of `(e^r - 1 - r) / r²` for |r| <= ln(2)/2, highest power first (Cephes `expf`).
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];

/// `e^x` within 2 ulp, denormals included; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Beyond these it is 0 and infinity. Written so that a NaN passes.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = mul_add::<FMA>(n, -LN_2_LOW, mul_add::<FMA>(n, -LN_2_HIGH, x));
    let mut p = EXP[0];
    for coefficient in &EXP[1..] {
        p = mul_add::<FMA>(p, r, *coefficient);
    }
    let p = mul_add::<FMA>(p, r * r, r) + 1.0;
    // The low bits of `shifted` hold n; 2^n in two factors, since n runs from -151 to 129.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// The greatest value; NaN is passed over, -inf if there is no other.
#[inline(always)]
pub(crate) fn greatest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut blocks = values.chunks_exact(LANES);
    for block in &mut blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    let tail = blocks.remainder().iter().chain(&lanes);
    tail.fold(f32::NEG_INFINITY, |greatest, value| if *value > greatest { *value } else { greatest })
}

/// `sum(exp(value - shift))`, in f32 lanes that are added up in f64.
#[inline(always)]
pub(crate) fn sum_exp<const FMA: bool>(values: &[f32], shift: f32) -> f64 {
    let mut lanes = [0.0_f32; LANES];
    let mut blocks = values.chunks_exact(LANES);
    for block in &mut blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += exp::<FMA>(*value - shift);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(blocks.remainder()) {
        *lane += exp::<FMA>(*value - shift);
    }
    lanes.iter().map(|lane| f64::from(*lane)).sum()
}

/// Rows of `width` values to a part: a function of the shape only, so that parts never depend on the threads, and
/// few enough parts that little work stays where it is (rayon runs a single part inline).
pub(crate) fn part_rows(width: usize) -> usize {
    (PART_VALUES / width.max(1)).max(1)
}

/// As [`part_rows`], for kernels that sum over rows: where rows are many, a part has enough of them that its sums are
/// small beside it, and no more, since one f32 after the other is added to them.
pub(crate) fn summed_rows(rows: usize, width: usize) -> usize {
    const ENOUGH: usize = 64;
    part_rows(width).max(rows.div_ceil(ENOUGH).min(ENOUGH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;

    vectorized! {
        fn exp_all<const FMA: bool>(isa: Isa, values: &mut [f32]) {
            for value in values {
                *value = exp::<FMA>(*value);
            }
        }
    }

    #[test]
    fn the_exponential_is_within_two_ulp_on_every_instruction_set() {
        let arguments: Vec<f32> = (-1_070_000..910_000).map(|i| i as f32 * 1.000_037e-4).collect();
        for isa in Isa::available() {
            let mut results = arguments.clone();
            exp_all(isa, &mut results);
            for (x, result) in arguments.iter().zip(&results) {
                let exact = f64::from(*x).exp();
                let nearest = exact as f32;
                let ulp = f64::from(nearest.next_up()) - f64::from(nearest);
                let within = nearest == *result || (f64::from(*result) - exact).abs() <= 2.0 * ulp;
                assert!(within, "{isa:?}: exp({x}) = {result}, not {exact}");
            }
            let mut special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -1e30, 1e30];
            exp_all(isa, &mut special);
            assert!(special[0].is_nan());
            assert_eq!(special[1..], [f32::INFINITY, 0.0, 1.0, 0.0, f32::INFINITY], "{isa:?}");
        }
    }

    #[test]
    fn rounding_to_bf16_agrees_with_the_half_crate() {
        let ties = [0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x7fff_ffff, 0x8000_8000];
        for bits in (0..=u32::MAX).step_by(4099).chain(ties) {
            let value = f32::from_bits(bits);
            let (ours, theirs) = (<bf16 as Value>::round(value), bf16::from_f32(value));
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{value} of bits {bits:#x}");
        }
    }
}
