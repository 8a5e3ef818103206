//! Reading a Hugging Face directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cambium_kernels::{Backend, Buffer, KernelError};
use cambium_spec::hf::prediction_layers;
use cambium_spec::{ModelSpec, TensorId};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::CheckpointError;
use crate::error::{ModelError, Outcome};
use crate::stage::Stage;

/// The longest header that is read: more than a million tensors fit.
const HEADER_BYTES_MAX: u64 = 256 << 20;

type Reading<T> = Result<T, CheckpointError>;

/// A Hugging Face directory whose headers were read.
pub struct HfDirectory {
    path: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Location>,
}

struct Location {
    file: usize,
    info: TensorInfo,
    /// First byte of the tensor in the file.
    start: u64,
}

/// The model that a directory's `config.json` describes.
///
/// # Errors
/// If the file cannot be read, or says anything that is not supported: all of it, by name.
pub fn load_spec(directory: &Path) -> Reading<ModelSpec> {
    let path = directory.join("config.json");
    let config = read_config(&path)?;
    ModelSpec::from_hf(&config).map_err(|source| CheckpointError::Config { path, source })
}

fn read_config(path: &Path) -> Reading<serde_json::Value> {
    let text = std::fs::read_to_string(path).map_err(CheckpointError::io("read", path))?;
    serde_json::from_str(&text).map_err(|error| CheckpointError::malformed(path, format!("not JSON: {error}")))
}

/// Reads every parameter of `stage` from a directory.
///
/// # Errors
/// If a file cannot be read, or tensors are missing, extra, misshapen, of a type that holds no weights, or hold values
/// that are not finite: all of them, by name.
pub fn load_model<B: Backend>(backend: &B, stage: &mut Stage<B>, directory: &Path) -> Outcome {
    let files = HfDirectory::open(directory)?;
    files.check(&stage.spec)?;
    let mut problems = Vec::new();
    for param in stage.params_mut() {
        for piece in param.pieces().to_vec() {
            let tensor = files.read(&piece.tensor.name)?;
            if let Some(found) = not_finite(&tensor)? {
                problems.push(format!("{}: {found}", piece.tensor.name));
            }
            backend.write(&tensor, param.master_mut().slice_mut(piece.range))?;
        }
        param.refresh(backend)?;
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(CheckpointError::Tensors { path: directory.to_owned(), problems }.into())
}

impl HfDirectory {
    /// Opens `model.safetensors.index.json` and the files that it names, or `model.safetensors`, and reads headers.
    ///
    /// # Errors
    /// If a file is missing, truncated, or its header claims what it does not hold.
    pub fn open(directory: &Path) -> Reading<Self> {
        let index = directory.join("model.safetensors.index.json");
        let mut opened = Self { path: directory.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        if !index.exists() {
            opened.add(&directory.join("model.safetensors"))?;
            return Ok(opened);
        }
        let weight_map = read_index(&index)?;
        for name in weight_map.values().collect::<BTreeSet<_>>() {
            // A name with a path in it could lead out of the directory.
            if Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(CheckpointError::malformed(&index, format!("names the file {name:?}, which is a path")));
            }
            opened.add(&directory.join(name))?;
        }
        for (tensor, file) in &weight_map {
            let found = opened.tensors.get(tensor).map(|at| &opened.files[at.file].0);
            if found != Some(&directory.join(file)) {
                let reason = format!("says that {tensor} is in {file}, which does not hold it");
                return Err(CheckpointError::malformed(&index, reason));
            }
        }
        Ok(opened)
    }

    fn add(&mut self, path: &Path) -> Reading<()> {
        let mut file = File::open(path).map_err(CheckpointError::io("open", path))?;
        let length = file.metadata().map_err(CheckpointError::io("read the length of", path))?.len();
        let malformed = |reason: String| CheckpointError::malformed(path, reason);
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(malformed(format!("{length} bytes are no safetensors file")));
        }
        file.read_exact(&mut prefix).map_err(CheckpointError::io("read", path))?;
        let header_bytes = u64::from_le_bytes(prefix);
        if header_bytes > HEADER_BYTES_MAX || header_bytes > length - 8 {
            let reason = format!("the header claims {header_bytes} bytes of a file of {length}");
            return Err(malformed(format!("{reason}; the file is truncated or no safetensors file")));
        }
        let mut header = vec![0; usize::try_from(header_bytes).map_err(|error| malformed(error.to_string()))?];
        file.read_exact(&mut header).map_err(CheckpointError::io("read", path))?;
        // Deserialising checks that offsets are in order without holes or overlaps and agree with shape and type.
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| malformed(format!("invalid header: {error}")))?;
        let (expected, found) = (metadata.data_len() as u64, length - 8 - header_bytes);
        if expected != found {
            return Err(malformed(format!("the header describes {expected} bytes of tensors, the file holds {found}")));
        }
        let index = self.files.len();
        for (name, info) in metadata.tensors() {
            let start = 8 + header_bytes + info.data_offsets.0 as u64;
            let location = Location { file: index, info: info.clone(), start };
            if let Some(other) = self.tensors.insert(name.clone(), location) {
                let other = self.files[other.file].0.display();
                return Err(malformed(format!("{name} is also in {other}")));
            }
        }
        self.files.push((path.to_owned(), file));
        Ok(())
    }

    /// Do the tensors here make up the model? A tied model may repeat its embedding as the output projection.
    ///
    /// # Errors
    /// [`CheckpointError::Tensors`] with everything that does not fit.
    pub fn check(&self, spec: &ModelSpec) -> Reading<()> {
        let mut problems = Vec::new();
        // DeepSeek-V3 files end with layers that predict further tokens; like transformers we leave them unread.
        let further = prediction_layers(&read_config(&self.path.join("config.json"))?);
        let further = spec.layer_count()..spec.layer_count().saturating_add(further);
        let unread = |name: &str| {
            let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            layer.and_then(|(index, _)| index.parse().ok()).is_some_and(|index: usize| further.contains(&index))
        };
        let expected = spec.tensors();
        for tensor in &expected {
            match self.tensors.get(&tensor.name).map(|at| &at.info) {
                None => problems.push(format!("{}: missing", tensor.name)),
                Some(info) if info.shape != tensor.shape => {
                    let (found, needed) = (&info.shape, &tensor.shape);
                    problems.push(format!("{}: has shape {found:?}, the config asks for {needed:?}", tensor.name));
                }
                Some(info) if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) => {
                    problems.push(format!("{}: is {:?}; F32, BF16 and F16 are read", tensor.name, info.dtype));
                }
                Some(_) => {}
            }
        }
        let names: BTreeSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
        let output = spec.family.tensor_name(TensorId::OutputProjection);
        for name in self.tensors.keys().filter(|name| !names.contains(name.as_str()) && !unread(name)) {
            if *name != output {
                problems.push(format!("{name}: not part of the model that the config describes"));
            } else if !self.repeats_embedding(spec, name)? {
                problems.push(format!("{name}: differs from the embedding although the config ties the two"));
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Tensors { path: self.path.clone(), problems })
    }

    fn repeats_embedding(&self, spec: &ModelSpec, output: &str) -> Reading<bool> {
        let embedding = spec.family.tensor_name(TensorId::Embedding);
        let (Some(a), Some(b)) = (self.tensors.get(&embedding), self.tensors.get(output)) else { return Ok(false) };
        Ok(a.info.shape == b.info.shape && a.info.dtype == b.info.dtype && self.bytes(a)? == self.bytes(b)?)
    }

    /// One tensor, in its own type.
    ///
    /// # Errors
    /// If there is none of this name, it cannot be read, or its type holds no weights.
    pub fn read(&self, name: &str) -> Outcome<Tensor> {
        let missing =
            || CheckpointError::Tensors { path: self.path.clone(), problems: vec![format!("{name}: missing")] };
        let location = self.tensors.get(name).ok_or_else(missing)?;
        let dtype = match location.info.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            Dtype::I64 => DType::I64,
            other => {
                let problems = vec![format!("{name}: is {other:?}, which holds no weights")];
                return Err(CheckpointError::Tensors { path: self.path.clone(), problems }.into());
            }
        };
        let bytes = self.bytes(location)?;
        let tensor = Tensor::from_raw_buffer(&bytes, dtype, &location.info.shape, &Device::Cpu);
        Ok(tensor.map_err(KernelError::Host)?)
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn bytes(&self, location: &Location) -> Reading<Vec<u8>> {
        let (path, file) = &self.files[location.file];
        let (start, end) = location.info.data_offsets;
        // The range lies inside the file: the header was held against its length.
        let mut bytes = vec![0; end - start];
        file.read_exact_at(&mut bytes, location.start).map_err(CheckpointError::io("read a tensor of", path))?;
        Ok(bytes)
    }
}

/// `weight_map` of an index: tensor name to file name.
fn read_index(path: &Path) -> Reading<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(path).map_err(CheckpointError::io("read", path))?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|error| CheckpointError::malformed(path, format!("no safetensors index: {error}")))?;
    Ok(index.weight_map)
}

/// The first value that is not finite, if there is one.
fn not_finite(tensor: &Tensor) -> Outcome<Option<String>> {
    let values = tensor.flatten_all().and_then(|flat| flat.to_dtype(DType::F32)).and_then(|flat| flat.to_vec1::<f32>());
    let values = values.map_err(|error| ModelError::Kernel(KernelError::Host(error)))?;
    let found = values.iter().enumerate().find(|(_, value)| !value.is_finite());
    Ok(found.map(|(index, value)| format!("element {index} is {value}; the checkpoint is damaged")))
}
