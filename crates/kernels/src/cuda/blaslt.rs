//! One matrix product by cuBLASLt: descriptors and the chosen algorithm, kept by shape.
//!
//! cuBLASLt counts columns first. A row-major C (m, n) is its column-major Cᵀ (n, m) = op(B)ᵀ · op(A)ᵀ, so B goes in first
//! and each matrix is described by its rows as columns; nothing is moved.
//!
//! **Invariant:** the algorithm is a function of the shape and the types only. It is asked for matrices aligned to
//! [`ALIGNMENT`] bytes; `products.rs` copies what is aligned worse, so that where a view begins never shows in its bits.
//! Partial sums of an algorithm that cuts the long side meet in f32 in the workspace: the schemes that round them to the
//! type of C, or add into C, are not allowed.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublas::sys::cublasOperation_t;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::failure;
use crate::backend::Outcome;
use crate::buffer::Element;
use crate::ops::Gemm;

/// Bytes that every matrix is aligned to: what the widest loads, and the tensor memory accelerator, ask of an address.
pub(super) const ALIGNMENT: u64 = 16;

/// NVIDIA's recommendation for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Plans that are kept. Experts get another number of rows in each step, so there is no end of shapes; when this many are
/// there, all are forgotten and made again as they are needed (some 100 µs each).
const PLANS_MOST: usize = 4096;

/// The library, one workspace, and the plans made so far.
pub(super) struct BlasLt {
    handle: sys::cublasLtHandle_t,
    plans: Mutex<HashMap<Product, Arc<Plan>>>,
    workspace: CudaSlice<u8>,
    stream: Arc<CudaStream>,
}

// SAFETY: cuBLASLt's handle may be used from several threads at a time; the workspace is used in the order of the one
// stream.
unsafe impl Send for BlasLt {}
// SAFETY: as above.
unsafe impl Sync for BlasLt {}

/// What decides the algorithm: the shape and the types of the factors and of C. `accumulate` is `beta`, which does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Product {
    sides: [usize; 3],
    transposed: [bool; 2],
    factors: Element,
    c: Element,
}

/// The addresses of A, B and C on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) c: u64,
}

impl BlasLt {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Outcome<Self> {
        stream.context().bind_to_thread().map_err(failure::driver("opening cuBLASLt"))?;
        // SAFETY: any bits are a u8; only cuBLASLt uses this memory, as scratch.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE_BYTES) };
        let workspace = workspace.map_err(failure::driver("allocating cuBLASLt's workspace"))?;
        let handle = result::create_handle().map_err(refused("opening cuBLASLt".to_owned()))?;
        Ok(Self { handle, plans: Mutex::default(), workspace, stream: Arc::clone(stream) })
    }

    /// Puts the product of `shape` into the stream: no side is 0.
    ///
    /// # Safety
    /// The addresses are those of whole matrices of the shape and types in this device's memory, each a multiple of
    /// [`ALIGNMENT`], of which C overlaps no other.
    pub(super) unsafe fn multiply(&self, shape: Gemm, factors: Element, c: Element, at: Addresses) -> Outcome {
        self.stream.context().bind_to_thread().map_err(failure::driver("gemm"))?;
        let Gemm { m, n, k, a_transposed, b_transposed, accumulate } = shape;
        let product = Product { sides: [m, n, k], transposed: [a_transposed, b_transposed], factors, c };
        let plan = self.plan(product)?;
        let (alpha, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
        let workspace = self.workspace.device_ptr(&self.stream).0;
        // SAFETY: the plan's descriptors are alive and of this shape; matrices are what the caller promises, and aligned
        // as the algorithm was asked for; alpha and beta are f32, the scale type, and read before this returns; C and D
        // are one matrix of one layout, which cuBLASLt allows; the workspace has the size that the algorithm was
        // limited to, and the stream keeps its users apart.
        unsafe {
            result::matmul(
                self.handle,
                plan.description.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                at.b as *const c_void,
                plan.b.0,
                at.a as *const c_void,
                plan.a.0,
                at.c as *const c_void,
                plan.c.0,
                at.c as *mut c_void,
                plan.c.0,
                &raw const plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(refused(format!("the product {product:?}")))
    }

    fn plan(&self, product: Product) -> Outcome<Arc<Plan>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&product) {
            return Ok(Arc::clone(plan));
        }
        let plan = Plan::new(self.handle, product).map_err(refused(format!("planning the product {product:?}")))?;
        if plans.len() >= PLANS_MOST {
            plans.clear();
        }
        let plan = Arc::new(plan);
        plans.insert(product, Arc::clone(&plan));
        Ok(plan)
    }
}

impl Drop for BlasLt {
    fn drop(&mut self) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread());
        // SAFETY: `new` made the handle and nobody uses it after this. What it says is of no use to anyone.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl fmt::Debug for BlasLt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlasLt").finish_non_exhaustive()
    }
}

fn refused(what: String) -> impl FnOnce(CublasError) -> crate::KernelError {
    move |error| {
        let next = "compare the version of libcublasLt with CUDA 13.0 and report the shape";
        failure::device(format!("{what} failed with {:?}; {next}", error.0))
    }
}

/// Descriptors and algorithm of one product; it is not changed once made.
struct Plan {
    description: Description,
    a: Layout,
    b: Layout,
    c: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: descriptors are plain memory of the library, not tied to a thread.
unsafe impl Send for Plan {}
// SAFETY: products only read them.
unsafe impl Sync for Plan {}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, product: Product) -> Result<Self, CublasError> {
        let Product { sides: [m, n, k], transposed: [a_transposed, b_transposed], factors, c } = product;
        // f32 factors are multiplied as f32: TF32, which keeps 10 bits of them, is another compute type.
        let description = Description::new()?;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        description.set(attribute, operation(b_transposed))?;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB;
        description.set(attribute, operation(a_transposed))?;
        let a = if a_transposed { Layout::new(factors, k, m)? } else { Layout::new(factors, m, k)? };
        let b = if b_transposed { Layout::new(factors, n, k)? } else { Layout::new(factors, k, n)? };
        let c = Layout::new(c, m, n)?;
        let preference = Preference::new()?;
        // SAFETY: all of them are alive and were made by this library.
        let found =
            unsafe { result::get_matmul_algo_heuristic(handle, description.0, b.0, a.0, c.0, c.0, preference.0) }?;
        Ok(Self { description, a, b, c, algorithm: found.algo })
    }
}

/// Whether cuBLASLt transposes what it sees, which is the transpose of what lies there: twice is not at all.
fn operation(transposed: bool) -> cublasOperation_t {
    if transposed { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N }
}

/// A row-major matrix, as the column-major one that cuBLASLt sees.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(element: Element, rows: usize, columns: usize) -> Result<Self, CublasError> {
        let element = match element {
            Element::F32 => sys::cudaDataType::CUDA_R_32F,
            Element::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Element::U32 => return Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)),
        };
        result::create_matrix_layout(element, columns as u64, rows as u64, columns as i64).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: `new` made it, and nobody uses it after this. What it says is of no use to anyone.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// How to multiply: sums in f32, scaled by f32.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self, CublasError> {
        let (sums, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        result::create_matmul_desc(sums, scale).map(Self)
    }

    fn set(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: cublasOperation_t) -> Result<(), CublasError> {
        let bytes = size_of_val(&value);
        // SAFETY: the descriptor is alive; both attributes that are set here are operations, and copied.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, (&raw const value).cast(), bytes) }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: `new` made it, and nobody uses it after this. What it says is of no use to anyone.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// What an algorithm may ask for.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = result::create_matmul_pref().map(Self)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES.to_ne_bytes())?;
        let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes.to_ne_bytes())?;
        for matrix in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(matrix, &(ALIGNMENT as u32).to_ne_bytes())?;
        }
        Ok(preference)
    }

    /// `value` is a u32 or a u64 by its length, as the attribute asks for.
    fn set(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &[u8]) -> Result<(), CublasError> {
        // SAFETY: the preference is alive; the value is copied, and its length is checked by the library.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, ptr::from_ref(value).cast(), value.len()) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: `new` made it, and nobody uses it after this. What it says is of no use to anyone.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
