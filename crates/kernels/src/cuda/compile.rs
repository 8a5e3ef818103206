//! Kernels from source to machine code, by NVRTC: needs neither a card nor a driver.
//!
//! A kernel is compiled to a cubin and not to PTX, so that what the assembler refuses shows here, on any machine. What is
//! compiled is kept in memory by source and options, for all devices of the process.

use std::collections::HashMap;
use std::env;
use std::ffi::{CStr, CString, c_char};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::nvrtc::{result, sys};

use super::{activation, columns, device, failure, norm, optimizer, rope, routing, tokens};
use crate::backend::Outcome;
use crate::buffer::Element;

/// What every source begins with.
const PRELUDE: &str = include_str!("prelude.cuh");

/// The folder of `cuda_bf16.h`, if it is not where the toolkit puts it.
const INCLUDE_VARIABLE: &str = "CAMBIUM_CUDA_INCLUDE";

/// A `.cu` file.
pub(super) struct Source {
    /// Its name in messages.
    pub(super) file: &'static str,
    /// Its text.
    pub(super) text: &'static str,
    /// Its kernels.
    pub(super) kernels: &'static [&'static Kernel],
}

/// A kernel, in all the types that it is compiled for.
pub(super) struct Kernel {
    /// Where it stands.
    pub(super) source: &'static Source,
    /// Its entry point, without the types.
    pub(super) name: &'static str,
    /// How many float types name it: `add_f32_bf16` has two.
    pub(super) types: usize,
}

impl Kernel {
    /// The entry point for these types, [`Self::types`] of them.
    pub(super) fn entry(&self, types: &[Element]) -> String {
        debug_assert_eq!(types.len(), self.types, "{}", self.name);
        let mut entry = self.name.to_owned();
        for element in types {
            entry.push_str(match element {
                Element::F32 => "_f32",
                Element::Bf16 => "_bf16",
                Element::U32 => "_u32",
            });
        }
        entry
    }

    /// All entry points.
    fn entries(&self) -> Vec<String> {
        let element = |bit| if bit == 0 { Element::F32 } else { Element::Bf16 };
        let types = |number: usize| (0..self.types).map(|i| element(number >> i & 1)).collect::<Vec<_>>();
        (0..1 << self.types).map(|number| self.entry(&types(number))).collect()
    }
}

/// Every source.
fn sources() -> [&'static Source; 7] {
    [
        &activation::SOURCE,
        &columns::SOURCE,
        &norm::SOURCE,
        &optimizer::SOURCE,
        &rope::SOURCE,
        &routing::SOURCE,
        &tokens::SOURCE,
    ]
}

/// Every source file and the entry points that it has to have: those that the backend may ask for.
#[must_use]
pub fn entries() -> Vec<(&'static str, Vec<String>)> {
    let all = |source: &Source| source.kernels.iter().flat_map(|kernel| kernel.entries()).collect();
    sources().into_iter().map(|source| (source.file, all(source))).collect()
}

/// Is NVRTC on this machine?
#[must_use]
pub fn is_available() -> bool {
    // SAFETY: opening the library runs its initialisers, which ask for nothing.
    unsafe { sys::is_culib_present() }
}

/// Compiles every source for `arch`, such as `sm_90a`: file names and cubins.
///
/// # Errors
/// [`KernelError::Device`](crate::KernelError::Device) if NVRTC or `cuda_bf16.h` is missing, or, with the compiler's log,
/// if a source does not compile.
pub fn compile_all(arch: &str) -> Outcome<Vec<(&'static str, Vec<u8>)>> {
    let options = Options::new(arch)?;
    sources().into_iter().map(|source| Ok((source.file, options.cubin(source)?.to_vec()))).collect()
}

/// How sources are compiled.
#[derive(Debug)]
pub(super) struct Options(Vec<String>);

/// What was compiled: by the source's hash, and the options, of which the architecture is one.
type Cubins = HashMap<(u64, Vec<String>), Arc<[u8]>>;
static CUBINS: Mutex<Option<Cubins>> = Mutex::new(None);

impl Options {
    /// For one architecture. Nothing here may trade exactness for speed: no fast mathematics.
    pub(super) fn new(arch: &str) -> Outcome<Self> {
        if !is_available() {
            return Err(failure::device(format!("NVRTC (libnvrtc.so.13) cannot be loaded; {}", device::TOOLKIT)));
        }
        let include = include_folder(|name| env::var_os(name).map(PathBuf::from))?;
        Ok(Self(vec![
            format!("--gpu-architecture={arch}"),
            "--std=c++17".to_owned(),
            format!("--include-path={}", include.display()),
        ]))
    }

    /// The cubin of a source, compiled at the first call.
    pub(super) fn cubin(&self, source: &Source) -> Outcome<Arc<[u8]>> {
        let text = format!("{PRELUDE}\n#line 1 \"{}\"\n{}", source.file, source.text);
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let key = (hasher.finish(), self.0.clone());
        // Held while compiling: two threads that ask for one source compile it once.
        let mut cubins = CUBINS.lock().unwrap_or_else(PoisonError::into_inner);
        let cubins = cubins.get_or_insert_default();
        if let Some(cubin) = cubins.get(&key) {
            return Ok(Arc::clone(cubin));
        }
        let cubin: Arc<[u8]> = compile(source.file, &text, &self.0)?.into();
        cubins.insert(key, Arc::clone(&cubin));
        Ok(cubin)
    }
}

/// The folder with `cuda_bf16.h`. A variable of our own decides alone, so that a mistake in it shows.
fn include_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Outcome<PathBuf> {
    let has_header = |folder: &Path| folder.join("cuda_bf16.h").is_file();
    if let Some(folder) = variable(INCLUDE_VARIABLE) {
        return if has_header(&folder) {
            Ok(folder)
        } else {
            let folder = folder.display();
            let next = format!("set {INCLUDE_VARIABLE} to the include folder of CUDA 13.0");
            Err(failure::device(format!("{INCLUDE_VARIABLE} = {folder} has no cuda_bf16.h; {next}")))
        };
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(&variable);
    let folders: Vec<_> = homes.chain([PathBuf::from("/usr/local/cuda")]).map(|home| home.join("include")).collect();
    folders.iter().find(|folder| has_header(folder)).cloned().ok_or_else(|| {
        let searched: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        let next = format!("set {INCLUDE_VARIABLE} to the include folder of CUDA 13.0, or CUDA_HOME to the toolkit");
        failure::device(format!("cuda_bf16.h is in none of {}; {next}", searched.join(", ")))
    })
}

/// One program, destroyed in the end.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: `compile` made this program, and nobody uses it after this. What it says is of no use to anyone.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn compile(file: &str, text: &str, options: &[String]) -> Outcome<Vec<u8>> {
    let refused = |what: &str, code: sys::nvrtcResult| {
        failure::device(format!(
            "NVRTC failed to {what} {file} with {code:?}; see that libnvrtc and its builtins are of CUDA 13.0 and both in LD_LIBRARY_PATH"
        ))
    };
    let no_zero = |what: &str| failure::device(format!("{what} of {file} contain a zero byte; remove it"));
    let source = CString::new(text).map_err(|_| no_zero("the text"))?;
    let name = CString::new(file).map_err(|_| no_zero("the name"))?;
    if options.iter().any(|option| option.contains('\0')) {
        return Err(no_zero("the compile options"));
    }
    let program = result::create_program(&source, Some(&name)).map_err(|error| refused("read", error.0))?;
    let program = Program(program);
    // SAFETY: the program is alive, and no option contains a zero byte.
    if let Err(error) = unsafe { result::compile_program(program.0, options) } {
        let (code, options, log) = (error.0, options.join(" "), log(&program));
        return Err(failure::device(format!(
            "{file} does not compile ({code:?}) with {options}; the compiler says:\n{log}"
        )));
    }
    let mut bytes = 0;
    // SAFETY: the program is alive and compiled; `bytes` is written.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut bytes) }.result().map_err(|e| refused("assemble", e.0))?;
    let mut cubin = vec![0u8; bytes];
    // SAFETY: the program is alive and compiled, and `cubin` has as many bytes as it just said.
    unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast::<c_char>()) }
        .result()
        .map_err(|e| refused("assemble", e.0))?;
    if cubin.is_empty() {
        return Err(failure::device(format!("NVRTC made no machine code of {file}; compile for sm_…, not compute_…")));
    }
    Ok(cubin)
}

/// What the compiler says.
fn log(program: &Program) -> String {
    // SAFETY: the program is alive.
    let log = match unsafe { result::get_program_log(program.0) } {
        Ok(log) => log.into_iter().map(|c| c.cast_unsigned()).collect::<Vec<u8>>(),
        Err(error) => return format!("(its log cannot be read: {:?})", error.0),
    };
    match CStr::from_bytes_until_nul(&log) {
        Ok(log) => log.to_string_lossy().trim_end().to_owned(),
        Err(_) => String::from_utf8_lossy(&log).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_points_are_named_by_their_types() {
        static SOURCE: Source = Source { file: "x.cu", text: "", kernels: &[] };
        let kernel = Kernel { source: &SOURCE, name: "add", types: 2 };
        assert_eq!(kernel.entries(), ["add_f32_f32", "add_bf16_f32", "add_f32_bf16", "add_bf16_bf16"]);
        assert_eq!(Kernel { types: 0, ..kernel }.entries(), ["add"]);
    }

    #[test]
    fn a_kernel_that_does_not_compile_is_refused_with_line_options_and_log() {
        if !is_available() {
            return eprintln!("skipped: NVRTC is not on this machine");
        }
        let options = ["--gpu-architecture=sm_80".to_owned()];
        let refused = compile("broken.cu", "\n__global__ void f() { g(); }", &options).expect_err("there is no g");
        let refused = refused.to_string();
        for part in
            ["broken.cu(2)", "NVRTC_ERROR_COMPILATION", "--gpu-architecture=sm_80", "identifier \"g\" is undefined"]
        {
            assert!(refused.contains(part), "{part} is not in: {refused}");
        }
    }

    #[test]
    fn a_missing_header_is_refused_with_the_variable_to_set() {
        let nowhere = |name: &str| (name == INCLUDE_VARIABLE).then(|| PathBuf::from("/nowhere"));
        let refused = include_folder(nowhere).expect_err("there is no such folder").to_string();
        assert!(refused.contains("CAMBIUM_CUDA_INCLUDE = /nowhere"), "{refused}");
    }
}
