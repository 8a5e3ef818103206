//! How a token lies in a file: its dtype, and decoding it against a vocabulary.
//!
//! Everything on disk is little-endian. Floating dtypes are Megatron's too: a token in them has to be a whole number.

use std::fmt;

/// The type of each token of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenDtype {
    /// Unsigned, 1 byte.
    U8,
    /// Signed, 1 byte.
    I8,
    /// Signed, 2 bytes.
    I16,
    /// Unsigned, 2 bytes.
    U16,
    /// Signed, 4 bytes.
    I32,
    /// Unsigned, 4 bytes; flat files only, Megatron has no code for it.
    U32,
    /// Signed, 8 bytes.
    I64,
    /// Floating, 4 bytes; whole numbers only.
    F32,
    /// Floating, 8 bytes; whole numbers only.
    F64,
}

impl TokenDtype {
    /// Every dtype.
    pub const ALL: [TokenDtype; 9] = {
        use TokenDtype::*;
        [U8, I8, I16, U16, I32, U32, I64, F32, F64]
    };

    /// Bytes that a token takes.
    pub fn bytes(self) -> u64 {
        match self {
            TokenDtype::U8 | TokenDtype::I8 => 1,
            TokenDtype::I16 | TokenDtype::U16 => 2,
            TokenDtype::I32 | TokenDtype::U32 | TokenDtype::F32 => 4,
            TokenDtype::I64 | TokenDtype::F64 => 8,
        }
    }

    /// The code of this dtype in an `.idx` header (`DType` of Megatron-LM's `indexed_dataset.py`); `None` for `U32`.
    pub fn megatron_code(self) -> Option<u8> {
        match self {
            TokenDtype::U8 => Some(1),
            TokenDtype::I8 => Some(2),
            TokenDtype::I16 => Some(3),
            TokenDtype::I32 => Some(4),
            TokenDtype::I64 => Some(5),
            TokenDtype::F64 => Some(6),
            TokenDtype::F32 => Some(7),
            TokenDtype::U16 => Some(8),
            TokenDtype::U32 => None,
        }
    }

    /// The dtype of an `.idx` header code, `None` if Megatron has no such code.
    pub fn from_megatron_code(code: u8) -> Option<TokenDtype> {
        Self::ALL.into_iter().find(|dtype| dtype.megatron_code() == Some(code))
    }

    /// The smallest dtype that Megatron itself writes for a vocabulary: `U16`, or `I32` from 65,537 ids on.
    pub fn for_vocab(vocab_size: usize) -> TokenDtype {
        if vocab_size <= 1 << 16 { TokenDtype::U16 } else { TokenDtype::I32 }
    }

    /// Decodes `bytes` into `out`, one token each; `Err` has the index and value of the first that is not an id below
    /// `vocab_size`. `bytes` holds exactly `out.len()` tokens; `vocab_size` is at most 2^32.
    pub(crate) fn decode(self, bytes: &[u8], vocab_size: u64, out: &mut [u32]) -> Result<(), (usize, TokenValue)> {
        let int = TokenValue::Int;
        let float = TokenValue::Float;
        match self {
            TokenDtype::U8 => decode(bytes, vocab_size, out, |b| int(u8::from_le_bytes(b).into())),
            TokenDtype::I8 => decode(bytes, vocab_size, out, |b| int(i8::from_le_bytes(b).into())),
            TokenDtype::I16 => decode(bytes, vocab_size, out, |b| int(i16::from_le_bytes(b).into())),
            TokenDtype::U16 => decode(bytes, vocab_size, out, |b| int(u16::from_le_bytes(b).into())),
            TokenDtype::I32 => decode(bytes, vocab_size, out, |b| int(i32::from_le_bytes(b).into())),
            TokenDtype::U32 => decode(bytes, vocab_size, out, |b| int(u32::from_le_bytes(b).into())),
            TokenDtype::I64 => decode(bytes, vocab_size, out, |b| int(i64::from_le_bytes(b))),
            TokenDtype::F32 => decode(bytes, vocab_size, out, |b| float(f32::from_le_bytes(b).into())),
            TokenDtype::F64 => decode(bytes, vocab_size, out, |b| float(f64::from_le_bytes(b))),
        }
    }

    /// Appends `tokens` to `bytes`; `Err` has the position of the first that this dtype cannot hold exactly.
    pub(crate) fn encode(self, tokens: &[u32], bytes: &mut Vec<u8>) -> Result<(), usize> {
        match self {
            TokenDtype::U8 => encode(tokens, bytes, |t| Some(u8::try_from(t).ok()?.to_le_bytes())),
            TokenDtype::I8 => encode(tokens, bytes, |t| Some(i8::try_from(t).ok()?.to_le_bytes())),
            TokenDtype::I16 => encode(tokens, bytes, |t| Some(i16::try_from(t).ok()?.to_le_bytes())),
            TokenDtype::U16 => encode(tokens, bytes, |t| Some(u16::try_from(t).ok()?.to_le_bytes())),
            TokenDtype::I32 => encode(tokens, bytes, |t| Some(i32::try_from(t).ok()?.to_le_bytes())),
            TokenDtype::U32 => encode(tokens, bytes, |t| Some(t.to_le_bytes())),
            TokenDtype::I64 => encode(tokens, bytes, |t| Some(i64::from(t).to_le_bytes())),
            TokenDtype::F32 => {
                encode(tokens, bytes, |t| (f64::from(t as f32) == f64::from(t)).then(|| (t as f32).to_le_bytes()))
            }
            TokenDtype::F64 => encode(tokens, bytes, |t| Some(f64::from(t).to_le_bytes())),
        }
    }
}

impl fmt::Display for TokenDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenDtype::U8 => "u8",
            TokenDtype::I8 => "i8",
            TokenDtype::I16 => "i16",
            TokenDtype::U16 => "u16",
            TokenDtype::I32 => "i32",
            TokenDtype::U32 => "u32",
            TokenDtype::I64 => "i64",
            TokenDtype::F32 => "f32",
            TokenDtype::F64 => "f64",
        })
    }
}

/// What stands in a file where a token should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TokenValue {
    /// In an integer dtype.
    Int(i64),
    /// In a floating dtype.
    Float(f64),
}

impl TokenValue {
    /// The id, if it is one below `vocab_size` (at most 2^32).
    fn id(self, vocab_size: u64) -> Option<u32> {
        match self {
            // A negative value becomes one far above every vocabulary.
            TokenValue::Int(value) => ((value as u64) < vocab_size).then_some(value as u32),
            // NaN fails each comparison.
            TokenValue::Float(value) => {
                (value >= 0.0 && value < vocab_size as f64 && value.fract() == 0.0).then_some(value as u32)
            }
        }
    }
}

impl fmt::Display for TokenValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenValue::Int(value) => value.fmt(f),
            TokenValue::Float(value) => value.fmt(f),
        }
    }
}

fn decode<const W: usize>(
    bytes: &[u8],
    vocab_size: u64,
    out: &mut [u32],
    value: impl Fn([u8; W]) -> TokenValue,
) -> Result<(), (usize, TokenValue)> {
    let (words, rest) = bytes.as_chunks::<W>();
    debug_assert!(words.len() == out.len() && rest.is_empty());
    for (index, (word, token)) in words.iter().zip(out).enumerate() {
        let value = value(*word);
        *token = value.id(vocab_size).ok_or((index, value))?;
    }
    Ok(())
}

fn encode<const W: usize>(
    tokens: &[u32],
    bytes: &mut Vec<u8>,
    word: impl Fn(u32) -> Option<[u8; W]>,
) -> Result<(), usize> {
    bytes.reserve(tokens.len().saturating_mul(W));
    for (position, &token) in tokens.iter().enumerate() {
        bytes.extend_from_slice(&word(token).ok_or(position)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_megatron() {
        use TokenDtype::*;
        let by_code = (0..=10).map(TokenDtype::from_megatron_code).collect::<Vec<_>>();
        let expected = [None, Some(U8), Some(I8), Some(I16), Some(I32), Some(I64), Some(F64), Some(F32), Some(U16)];
        assert_eq!(by_code[..9], expected);
        assert_eq!(by_code[9..], [None, None]);
    }

    #[test]
    fn every_dtype_gives_back_the_largest_token_that_it_takes_and_refuses_the_next() {
        let largest = |dtype| match dtype {
            TokenDtype::U8 => 255,
            TokenDtype::I8 => 127,
            TokenDtype::I16 => 32_767,
            TokenDtype::U16 => 65_535,
            TokenDtype::I32 => i32::MAX as u32,
            TokenDtype::F32 => 1 << 24,
            TokenDtype::U32 | TokenDtype::I64 | TokenDtype::F64 => u32::MAX,
        };
        for dtype in TokenDtype::ALL {
            let largest = largest(dtype);
            let mut bytes = Vec::new();
            dtype.encode(&[0, 1, largest], &mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, 3 * dtype.bytes());
            let mut out = [9; 3];
            dtype.decode(&bytes, 1 << 32, &mut out).unwrap();
            assert_eq!(out, [0, 1, largest], "{dtype}");
            if largest < u32::MAX {
                assert_eq!(dtype.encode(&[0, largest + 1], &mut bytes), Err(1), "{dtype}");
            }
        }
    }

    #[test]
    fn values_that_are_no_ids_are_refused_with_index_and_value() {
        let mut out = [0; 2];
        let bytes = |values: [f64; 2]| values.map(f64::to_le_bytes).concat();
        for bad in [1.5, -1.0, 100.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let (index, value) = TokenDtype::F64.decode(&bytes([7.0, bad]), 100, &mut out).unwrap_err();
            assert_eq!((index, value.to_string()), (1, bad.to_string()));
        }
        TokenDtype::F64.decode(&bytes([-0.0, 99.0]), 100, &mut out).unwrap();
        assert_eq!(out, [0, 99]);
        let negative = (-1i16).to_le_bytes();
        assert_eq!(TokenDtype::I16.decode(&negative, 1 << 32, &mut out[..1]), Err((0, TokenValue::Int(-1))));
        assert_eq!(TokenDtype::U8.decode(&[100], 100, &mut out[..1]), Err((0, TokenValue::Int(100))));
    }
}
