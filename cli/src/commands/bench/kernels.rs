//! `cambium bench kernels`: each kernel at the reference model's shapes.
//!
//! Products and attention are held against the rate of a large matrix product, all others against the rate of a large
//! copy, counting the bytes that a kernel must read and write once.

use cambium_kernels::cpu::Cpu;
use cambium_kernels::{
    AdamW, AttentionShape, Backend, Buffer, Element, Gemm, GroupedGemm, GroupedProduct, RmsNorm, RopeShape, RouterLoss,
    RouterShape, Score,
};
use clap::ValueEnum;

use super::ceiling::{Ceiling, best_time, normal};
use crate::commands::Dtype;
use crate::output::{self, Table};
use crate::progress;

/// Time each kernel at the reference model's shapes, against this machine's measured limits.
///
/// The reference model: hidden 384, 6 heads of 64, 2 KV heads, 16 experts, top-4, expert size 192, vocabulary 8192,
/// 8 sequences of 256 tokens.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cambium bench kernels
  cambium bench kernels --dtype bf16 --threads 1 --json")]
pub(crate) struct Args {
    /// Only this type [default: both]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Threads; 0 takes all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Report {
    ceiling: Ceiling,
    kernels: Vec<Rate>,
}

#[derive(serde::Serialize)]
struct Rate {
    kernel: String,
    dtype: &'static str,
    shape: String,
    microseconds: f64,
    /// Of products and attention.
    gflops_per_s: Option<f64>,
    /// Of everything else.
    gb_per_s: Option<f64>,
    /// Of the ceiling that bounds it.
    ceiling_fraction: f64,
}

/// What bounds a kernel, and how much of it a call takes.
enum Cost {
    Flops(u64),
    Bytes(usize),
}

const TOKENS: usize = 2048;
const SEQ_LEN: usize = 256;
const HIDDEN: usize = 384;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const EXPERTS: usize = 16;
const TOP_K: usize = 4;
const EXPERT_SIZE: usize = 192;
const VOCAB: usize = 8192;
/// Tokens of a chunk of logits.
const CHUNK: usize = 1024;
const ASSIGNMENTS: usize = TOKENS * TOP_K;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let cpu = Cpu::new(args.threads)?;
    let dtypes = args.dtype.map_or_else(|| Dtype::value_variants().to_vec(), |dtype| vec![dtype]);
    let (ceiling, kernels) = cpu.run(|| {
        let ceiling = Ceiling::measure(&cpu)?;
        let mut bench = Bench { cpu: &cpu, element: Element::F32, ceiling, rates: Vec::new() };
        let bar = progress::bar(dtypes.len() as u64, "types");
        for dtype in &dtypes {
            bench.element = dtype.precision().element();
            bench.products()?;
            bench.attention()?;
            bench.pointwise()?;
            bench.routing()?;
            bar.inc(1);
        }
        bench.element = Element::F32;
        bench.optimizer()?;
        bar.finish_and_clear();
        anyhow::Ok((ceiling, bench.rates))
    })?;
    let report = Report { ceiling, kernels };
    if args.json { output::json(&report) } else { print(&report) }
}

struct Bench<'a> {
    cpu: &'a Cpu,
    element: Element,
    ceiling: Ceiling,
    rates: Vec<Rate>,
}

type Buf = <Cpu as Backend>::Buffer;

impl Bench<'_> {
    fn random(&self, len: usize) -> anyhow::Result<Buf> {
        normal(self.cpu, self.element, len, len as u64)
    }

    fn random_f32(&self, len: usize) -> anyhow::Result<Buf> {
        normal(self.cpu, Element::F32, len, len as u64)
    }

    fn room(&self, len: usize) -> anyhow::Result<Buf> {
        Ok(self.cpu.zeros(self.element, len)?)
    }

    fn f32(&self, len: usize) -> anyhow::Result<Buf> {
        Ok(self.cpu.zeros(Element::F32, len)?)
    }

    fn time(
        &mut self,
        kernel: &str,
        shape: String,
        cost: Cost,
        work: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let seconds = best_time(10, work)?.as_secs_f64();
        let (gflops_per_s, gb_per_s, ceiling_fraction) = match cost {
            Cost::Flops(flops) => {
                let rate = flops as f64 / seconds / 1e9;
                (Some(rate), None, rate / self.ceiling.gemm_gflops(self.element))
            }
            Cost::Bytes(bytes) => {
                let rate = bytes as f64 / seconds / 1e9;
                (None, Some(rate), rate / self.ceiling.memory_gb_s)
            }
        };
        self.rates.push(Rate {
            kernel: kernel.to_owned(),
            dtype: if self.element == Element::Bf16 { "bf16" } else { "f32" },
            shape,
            microseconds: seconds * 1e6,
            gflops_per_s,
            gb_per_s,
            ceiling_fraction,
        });
        Ok(())
    }

    /// Bytes of `values` activations.
    fn activations(&self, values: usize) -> usize {
        values * self.element.bytes()
    }

    fn products(&mut self) -> anyhow::Result<()> {
        let shapes = [
            ("query", TOKENS, HEADS * HEAD_DIM, HIDDEN),
            ("key, value", TOKENS, KV_HEADS * HEAD_DIM, HIDDEN),
            ("logits", CHUNK, VOCAB, HIDDEN),
        ];
        for (name, m, n, k) in shapes {
            self.product(&format!("gemm {name}"), m, n, k, false, true, false)?;
            self.product(&format!("gemm {name}, input gradient"), m, k, n, false, false, false)?;
            self.product(&format!("gemm {name}, weight gradient"), n, k, m, true, false, true)?;
        }
        for (name, n, k) in [("gate and up", 2 * EXPERT_SIZE, HIDDEN), ("down", HIDDEN, EXPERT_SIZE)] {
            for (what, product) in [
                ("", GroupedProduct::Forward),
                (", input gradient", GroupedProduct::InputGradient),
                (", weight gradient", GroupedProduct::WeightGradient),
            ] {
                self.grouped(&format!("experts {name}{what}"), product, n, k)?;
            }
        }
        Ok(())
    }

    fn product(
        &mut self,
        name: &str,
        m: usize,
        n: usize,
        k: usize,
        a_transposed: bool,
        b_transposed: bool,
        f32_out: bool,
    ) -> anyhow::Result<()> {
        let (cpu, a, b) = (self.cpu, self.random(m * k)?, self.random(k * n)?);
        let mut c = if f32_out { self.f32(m * n)? } else { self.room(m * n)? };
        let shape = Gemm { m, n, k, a_transposed, b_transposed, accumulate: f32_out };
        self.time(name, format!("{m} x {n} x {k}"), Cost::Flops(shape.flops()), || {
            Ok(cpu.gemm(shape, (&a).into(), (&b).into(), (&mut c).into())?)
        })
    }

    fn grouped(&mut self, name: &str, product: GroupedProduct, n: usize, k: usize) -> anyhow::Result<()> {
        let cpu = self.cpu;
        let (rows_n, rows_k) = (self.random(ASSIGNMENTS * n)?, self.random(ASSIGNMENTS * k)?);
        let weights = self.random(EXPERTS * n * k)?;
        // Uneven as in training: expert e gets a share that grows with e.
        let total: usize = (0..EXPERTS).map(|e| EXPERTS + e).sum();
        let mut offsets = vec![0];
        let mut share = 0;
        for e in 0..EXPERTS {
            share += EXPERTS + e;
            offsets.push(ASSIGNMENTS * share / total);
        }
        let accumulate = product == GroupedProduct::WeightGradient;
        let (a, b, mut c) = match product {
            GroupedProduct::Forward => (&rows_k, &weights, self.room(ASSIGNMENTS * n)?),
            GroupedProduct::InputGradient => (&rows_n, &weights, self.room(ASSIGNMENTS * k)?),
            GroupedProduct::WeightGradient => (&rows_n, &rows_k, self.f32(EXPERTS * n * k)?),
        };
        let shape = GroupedGemm { product, n, k, offsets: &offsets, accumulate };
        self.time(
            name,
            format!("{EXPERTS} x ({ASSIGNMENTS}/{EXPERTS}) x {n} x {k}"),
            Cost::Flops(shape.flops()),
            || Ok(cpu.grouped_gemm(shape, a.into(), b.into(), (&mut c).into())?),
        )
    }

    fn attention(&mut self) -> anyhow::Result<()> {
        for seq_len in [SEQ_LEN, TOKENS] {
            let shape = AttentionShape {
                batch: TOKENS / seq_len,
                seq_len,
                heads: HEADS,
                kv_heads: KV_HEADS,
                qk_dim: HEAD_DIM,
                v_dim: HEAD_DIM,
                scale: 0.125,
            };
            let (cpu, q_len, k_len) = (self.cpu, TOKENS * HEADS * HEAD_DIM, TOKENS * KV_HEADS * HEAD_DIM);
            let (q, k, v, d_out) = (self.random(q_len)?, self.random(k_len)?, self.random(k_len)?, self.random(q_len)?);
            let (mut out, mut lse) = (self.room(q_len)?, self.f32(TOKENS * HEADS)?);
            let (mut dq, mut dk, mut dv) = (self.room(q_len)?, self.room(k_len)?, self.room(k_len)?);
            let text = format!("{} x {seq_len}", TOKENS / seq_len);
            self.time("attention forward", text.clone(), Cost::Flops(shape.forward_flops()), || {
                let (out, lse) = ((&mut out).into(), (&mut lse).into());
                Ok(cpu.attention_forward(shape, (&q).into(), (&k).into(), (&v).into(), out, lse)?)
            })?;
            self.time("attention backward", text, Cost::Flops(shape.backward_flops()), || {
                Ok(cpu.attention_backward(
                    shape,
                    (&d_out).into(),
                    (&q).into(),
                    (&k).into(),
                    (&v).into(),
                    (&out).into(),
                    (&lse).into(),
                    (&mut dq).into(),
                    (&mut dk).into(),
                    (&mut dv).into(),
                )?)
            })?;
        }
        Ok(())
    }

    fn pointwise(&mut self) -> anyhow::Result<()> {
        let (cpu, size) = (self.cpu, TOKENS * HIDDEN);
        let (x, dy, weight) = (self.random(size)?, self.random(size)?, self.random_f32(HIDDEN)?);
        let (mut y, mut dx) = (self.room(size)?, self.room(size)?);
        let (mut rms, mut d_weight) = (self.f32(TOKENS)?, self.f32(HIDDEN)?);
        let norm = RmsNorm { rows: TOKENS, width: HIDDEN, eps: 1e-6, accumulate: false };
        let text = format!("{TOKENS} x {HIDDEN}");
        self.time("rms_norm forward", text.clone(), Cost::Bytes(self.activations(2 * size)), || {
            Ok(cpu.rms_norm_forward(norm, (&x).into(), (&weight).into(), (&mut y).into(), (&mut rms).into())?)
        })?;
        let accumulating = RmsNorm { accumulate: true, ..norm };
        self.time("rms_norm backward, +=", text.clone(), Cost::Bytes(self.activations(4 * size)), || {
            let (dx, d_weight) = ((&mut dx).into(), (&mut d_weight).into());
            Ok(cpu.rms_norm_backward(
                accumulating,
                (&dy).into(),
                (&x).into(),
                (&weight).into(),
                (&rms).into(),
                dx,
                d_weight,
            )?)
        })?;
        let table = self.random_f32(SEQ_LEN * HEAD_DIM)?;
        let rope = RopeShape {
            tokens: TOKENS,
            seq_len: SEQ_LEN,
            heads: HEADS,
            head_dim: HEAD_DIM,
            rotary_start: 0,
            rotary_dim: HEAD_DIM,
            interleaved: false,
            inverse: false,
        };
        self.time("rope", text, Cost::Bytes(self.activations(2 * size)), || {
            Ok(cpu.rope(rope, (&table).into(), (&mut y).into())?)
        })?;

        let rows = ASSIGNMENTS;
        let (gate_up, d_act) = (self.random(rows * 2 * EXPERT_SIZE)?, self.random(rows * EXPERT_SIZE)?);
        let (mut act, mut d_gate_up) = (self.room(rows * EXPERT_SIZE)?, self.room(rows * 2 * EXPERT_SIZE)?);
        let text = format!("{rows} x {EXPERT_SIZE}");
        let values = rows * EXPERT_SIZE;
        self.time("swiglu forward", text.clone(), Cost::Bytes(self.activations(3 * values)), || {
            Ok(cpu.swiglu_forward(rows, EXPERT_SIZE, (&gate_up).into(), (&mut act).into())?)
        })?;
        self.time("swiglu backward", text, Cost::Bytes(self.activations(5 * values)), || {
            Ok(cpu.swiglu_backward(rows, EXPERT_SIZE, (&d_act).into(), (&gate_up).into(), (&mut d_gate_up).into())?)
        })?;

        let table = self.random(VOCAB * HIDDEN)?;
        let mut ids = cpu.alloc(Element::U32, TOKENS)?;
        let values: Vec<u32> = (0..TOKENS as u32).map(|t| t.wrapping_mul(2_654_435_761) % VOCAB as u32).collect();
        cpu.write_u32(&values, (&mut ids).into())?;
        let mut d_table = self.f32(VOCAB * HIDDEN)?;
        let text = format!("{TOKENS} of {VOCAB} x {HIDDEN}");
        self.time("embedding forward", text.clone(), Cost::Bytes(self.activations(2 * size)), || {
            Ok(cpu.embedding_forward(HIDDEN, (&table).into(), (&ids).into(), (&mut y).into())?)
        })?;
        self.time("embedding backward", text, Cost::Bytes(self.activations(size) + 8 * size), || {
            Ok(cpu.embedding_backward(HIDDEN, (&x).into(), (&ids).into(), (&mut d_table).into())?)
        })?;
        let logits = self.random_f32(CHUNK * VOCAB)?;
        let (mut d_logits, mut nll) = (self.room(CHUNK * VOCAB)?, self.f32(CHUNK)?);
        let bytes = 4 * CHUNK * VOCAB + self.activations(CHUNK * VOCAB);
        self.time("cross_entropy", format!("{CHUNK} x {VOCAB}"), Cost::Bytes(bytes), || {
            let targets = ids.slice(0..CHUNK);
            let (nll, d_logits) = ((&mut nll).into(), Some((&mut d_logits).into()));
            Ok(cpu.cross_entropy(VOCAB, 1.0, (&logits).into(), targets, nll, d_logits)?)
        })
    }

    fn routing(&mut self) -> anyhow::Result<()> {
        let cpu = self.cpu;
        let shape = RouterShape {
            tokens: TOKENS,
            experts: EXPERTS,
            top_k: TOP_K,
            score: Score::Softmax,
            renormalize: true,
            scale: 1.0,
            groups: None,
        };
        let logits = self.random_f32(TOKENS * EXPERTS)?;
        let (mut scores, mut gates) = (self.f32(TOKENS * EXPERTS)?, self.f32(ASSIGNMENTS)?);
        let mut ids = cpu.zeros(Element::U32, ASSIGNMENTS)?;
        let text = format!("{TOKENS} x {EXPERTS}, top {TOP_K}");
        let bytes = 4 * (2 * TOKENS * EXPERTS + 2 * ASSIGNMENTS);
        let mut counts = Vec::new();
        self.time("router forward", text.clone(), Cost::Bytes(bytes), || {
            let (scores, ids, gates) = ((&mut scores).into(), (&mut ids).into(), (&mut gates).into());
            counts = cpu.router_forward(shape, (&logits).into(), None, scores, ids, gates)?.counts;
            Ok(())
        })?;
        let (d_gates, mut d_logits) = (self.random_f32(ASSIGNMENTS)?, self.f32(TOKENS * EXPERTS)?);
        let grad = vec![0.01; EXPERTS];
        self.time("router backward", text.clone(), Cost::Bytes(4 * (3 * TOKENS * EXPERTS + 2 * ASSIGNMENTS)), || {
            let loss = RouterLoss { score_grad: &grad, z_grad: 1e-3 };
            let (scores, d_gates, d_logits) = ((&scores).into(), (&d_gates).into(), (&mut d_logits).into());
            Ok(cpu.router_backward(shape, loss, (&logits).into(), scores, (&ids).into(), d_gates, d_logits)?)
        })?;
        let mut offsets = vec![0];
        for count in &counts {
            offsets.push(offsets[offsets.len() - 1] + *count as usize);
        }
        let (mut assignment, mut position) =
            (cpu.zeros(Element::U32, ASSIGNMENTS)?, cpu.zeros(Element::U32, ASSIGNMENTS)?);
        self.time("sort_by_expert", text.clone(), Cost::Bytes(12 * ASSIGNMENTS), || {
            Ok(cpu.sort_by_expert((&ids).into(), &offsets, (&mut assignment).into(), (&mut position).into())?)
        })?;
        let (size, rows_size) = (TOKENS * HIDDEN, ASSIGNMENTS * HIDDEN);
        let (x, expert_out) = (self.random(size)?, self.random(rows_size)?);
        let (mut rows, mut dx, mut d_gates) = (self.room(rows_size)?, self.room(size)?, self.f32(ASSIGNMENTS)?);
        let text = format!("{ASSIGNMENTS} x {HIDDEN}");
        self.time("gather_rows", text.clone(), Cost::Bytes(self.activations(size + rows_size)), || {
            Ok(cpu.gather_rows(TOP_K, HIDDEN, (&x).into(), (&assignment).into(), (&mut rows).into())?)
        })?;
        self.time("scatter_rows_add", text.clone(), Cost::Bytes(self.activations(2 * size + rows_size)), || {
            Ok(cpu.scatter_rows_add(TOP_K, HIDDEN, (&rows).into(), (&position).into(), (&mut dx).into())?)
        })?;
        self.time("combine forward", text.clone(), Cost::Bytes(self.activations(2 * size + rows_size)), || {
            let (position, gates) = ((&position).into(), (&gates).into());
            Ok(cpu.combine_forward(TOP_K, HIDDEN, (&expert_out).into(), position, gates, (&mut dx).into())?)
        })?;
        self.time("combine backward", text, Cost::Bytes(self.activations(size + 2 * rows_size)), || {
            let (position, gates) = ((&position).into(), (&gates).into());
            let (d_rows, d_gates) = ((&mut rows).into(), (&mut d_gates).into());
            Ok(cpu.combine_backward(
                TOP_K,
                HIDDEN,
                (&x).into(),
                (&expert_out).into(),
                position,
                gates,
                d_rows,
                d_gates,
            )?)
        })
    }

    fn optimizer(&mut self) -> anyhow::Result<()> {
        let (cpu, len) = (self.cpu, 16 << 20);
        let grad = self.random_f32(len)?;
        let (mut master, mut moment1, mut moment2) = (self.random_f32(len)?, self.f32(len)?, self.f32(len)?);
        let step = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 0.5 };
        self.time("adamw", format!("{len}"), Cost::Bytes(28 * len), || {
            let (master, moment1, moment2) = ((&mut master).into(), (&mut moment1).into(), (&mut moment2).into());
            Ok(cpu.adamw(step, (&grad).into(), master, moment1, moment2, None)?)
        })?;
        self.time("sum_squares", format!("{len}"), Cost::Bytes(4 * len), || {
            cpu.sum_squares((&grad).into())?;
            Ok(())
        })
    }
}

fn print(report: &Report) -> anyhow::Result<()> {
    println!(
        "ceiling: f32 product {:.0} GFLOP/s, bf16 product {:.0} GFLOP/s, memory {:.1} GB/s\n",
        report.ceiling.gemm_f32_gflops, report.ceiling.gemm_bf16_gflops, report.ceiling.memory_gb_s
    );
    let mut table = Table::new(&["kernel", "type", "shape", "us", "GFLOP/s", "GB/s", "% of ceiling"]);
    for rate in &report.kernels {
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.0}"));
        table.row(vec![
            rate.kernel.clone(),
            rate.dtype.to_owned(),
            rate.shape.clone(),
            format!("{:.0}", rate.microseconds),
            number(rate.gflops_per_s),
            number(rate.gb_per_s),
            format!("{:.0}", 100.0 * rate.ceiling_fraction),
        ]);
    }
    table.print()
}
