//! Writing a Hugging Face directory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use cambium_kernels::{Backend, View};
use cambium_spec::{TensorSpec, TorchDtype};
use half::bf16;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::CheckpointError;
use crate::error::Outcome;
use crate::stage::Stage;

/// In which form a checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaveAs {
    /// Round the masters to bf16; otherwise f32.
    pub bf16: bool,
    /// The most bytes of tensors in one file; a larger tensor gets a file of its own.
    pub shard_bytes_max: u64,
}

impl Default for SaveAs {
    /// f32, 5 GB a file.
    fn default() -> Self {
        Self { bf16: false, shard_bytes_max: 5_000_000_000 }
    }
}

/// Writes all parameters of a whole model to `directory` as transformers does: `config.json`, `model.safetensors`, or
/// several of those and an index. One tensor at a time is in memory. Each file appears under its name when it is whole.
///
/// # Errors
/// If the directory cannot be written or a kernel fails.
pub fn save<B: Backend>(backend: &B, stage: &Stage<B>, directory: &Path, form: SaveAs) -> Outcome {
    std::fs::create_dir_all(directory).map_err(CheckpointError::io("create", directory))?;
    let mut tensors: BTreeMap<String, Source<'_, B>> = BTreeMap::new();
    for param in stage.params() {
        for piece in param.pieces() {
            let values = View { start: piece.range.start, len: piece.range.len(), ..param.master() };
            tensors.insert(piece.tensor.name.clone(), Source { tensor: &piece.tensor, values });
        }
    }
    let shards = shards(tensors, form);
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    let mut total_bytes = 0;
    for (index, shard) in shards.iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        total_bytes += write_shard(backend, &directory.join(&name), shard, form)?;
        weight_map.extend(shard.iter().map(|source| (source.tensor.name.clone(), name.clone())));
    }
    // A reader looks for the index first: one that is left from an earlier save must not hide this one.
    let index = directory.join("model.safetensors.index.json");
    if count > 1 {
        let json = serde_json::json!({ "metadata": { "total_size": total_bytes }, "weight_map": weight_map });
        write_json(&index, &json)?;
    } else if index.exists() {
        std::fs::remove_file(&index).map_err(CheckpointError::io("remove", &index))?;
    }
    let path = directory.join("config.json");
    let dtype = if form.bf16 { TorchDtype::Bfloat16 } else { TorchDtype::Float32 };
    let config = stage.spec.to_hf(dtype).map_err(|source| CheckpointError::Config { path: path.clone(), source })?;
    write_json(&path, &config)?;
    Ok(())
}

struct Source<'a, B: Backend> {
    tensor: &'a TensorSpec,
    values: View<'a, B::Buffer>,
}

fn element_bytes(form: SaveAs) -> u64 {
    if form.bf16 { 2 } else { 4 }
}

/// Tensors by name, cut into files.
fn shards<B: Backend>(tensors: BTreeMap<String, Source<'_, B>>, form: SaveAs) -> Vec<Vec<Source<'_, B>>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0;
    for source in tensors.into_values() {
        let bytes = source.values.len as u64 * element_bytes(form);
        if filled > 0 && filled + bytes > form.shard_bytes_max {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(source);
        }
    }
    shards
}

/// Gives the bytes of the tensors.
fn write_shard<B: Backend>(backend: &B, path: &Path, shard: &[Source<'_, B>], form: SaveAs) -> Outcome<u64> {
    let mut end = 0;
    let infos = shard.iter().map(|source| {
        let start = end;
        end += source.values.len * element_bytes(form) as usize;
        let dtype = if form.bf16 { Dtype::BF16 } else { Dtype::F32 };
        let info = TensorInfo { dtype, shape: source.tensor.shape.clone(), data_offsets: (start, end) };
        (source.tensor.name.clone(), info)
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos.collect())
        .map_err(|error| CheckpointError::malformed(path, format!("cannot describe its tensors: {error}")))?;
    let mut header = serde_json::to_vec(&metadata)
        .map_err(|error| CheckpointError::malformed(path, format!("cannot describe its tensors: {error}")))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let part = part_name(path);
    let file = File::create(&part).map_err(CheckpointError::io("create", &part))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(CheckpointError::io("write", &part));
    put(&(header.len() as u64).to_le_bytes())?;
    put(&header)?;
    for source in shard {
        let values = backend.read_f32(source.values)?;
        let bytes: Vec<u8> = if form.bf16 {
            values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
        } else {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        put(&bytes)?;
    }
    let file = out.into_inner().map_err(|error| CheckpointError::io("write", &part)(error.into_error()))?;
    file.sync_all().map_err(CheckpointError::io("write", &part))?;
    std::fs::rename(&part, path).map_err(CheckpointError::io("rename to", path))?;
    Ok(end as u64)
}

fn write_json(path: &Path, json: &serde_json::Value) -> Result<(), CheckpointError> {
    let part = part_name(path);
    std::fs::write(&part, format!("{json:#}\n")).map_err(CheckpointError::io("write", &part))?;
    std::fs::rename(&part, path).map_err(CheckpointError::io("rename to", path))
}

/// Where a file grows before it is whole.
fn part_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}
