//! Objects: the same bytes for any number of threads, and no symbols but the allowed.

use super::*;
use crate::emit::{Cmp, Elem, Model};
use crate::math;

fn target() -> Target {
    Target {
        name: "avx2",
        model: Model::Cpu,
        triple: "x86_64-unknown-linux-gnu",
        cpu: "x86-64-v3",
        features: "",
        lanes: 8,
        vector_registers: 16,
        bf16_convert: false,
        bf16_dot: false,
    }
}

fn exp_kernel(name: &str) -> KernelSource {
    let entry = name.to_string();
    KernelSource::new(name, "test", move |cg: &Cg| {
        cg.grid_kernel(&entry, 2, 1, |k, block| {
            let n = k.scalars[0];
            let first = cg.mul(block, 1024);
            let last = cg.min(cg.add(first, 1024), n);
            cg.for_each(first, last, 8, |i| {
                let ty = cg.f32v();
                let mask = cg.mask_below(cg.sub(last, i), ty.lanes);
                let x = cg.masked_load(ty, cg.at(k.buffers[0], Elem::F32, i), mask);
                let y = math::exp(cg, x);
                cg.masked_store(y, cg.at(k.buffers[1], Elem::F32, i), mask);
            });
        });
    })
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let names: Vec<String> = (0..9).map(|i| format!("exp_{i}")).collect();
    let sources: Vec<KernelSource> = names.iter().map(|n| exp_kernel(n)).collect();
    let one = compile_all(&target(), &sources, 1, None).unwrap();
    assert_eq!(one.len(), 9);
    assert_eq!(one, compile_all(&target(), &sources, 4, None).unwrap());
}

/// Remembers objects, and how many were asked for in vain.
#[derive(Default)]
struct Memory {
    objects: Mutex<Vec<(String, Vec<u8>)>>,
    missed: AtomicUsize,
}

impl Made for Memory {
    fn find(&self, target: &Target, kernel: &str) -> Option<Vec<u8>> {
        let name = format!("{} {kernel}", target.name);
        let objects = self.objects.lock().unwrap();
        let found = objects.iter().find(|(n, _)| *n == name).map(|(_, bytes)| bytes.clone());
        self.missed.fetch_add(usize::from(found.is_none()), Ordering::Relaxed);
        found
    }

    fn keep(&self, target: &Target, kernel: &str, object: &[u8]) {
        let name = format!("{} {kernel}", target.name);
        self.objects.lock().unwrap().push((name, object.to_vec()));
    }
}

#[test]
fn what_was_made_before_is_not_made_again() {
    let [a, b, c] = ["a", "b", "c"].map(exp_kernel);
    let made = Memory::default();
    compile_all(&target(), &[a.clone(), b.clone()], 1, Some(&made)).unwrap();
    let sources = [b, a, c];
    let all = compile_all(&target(), &sources, 2, Some(&made)).unwrap();
    assert_eq!(made.missed.into_inner(), 3);
    assert_eq!(all, compile_all(&target(), &sources, 1, None).unwrap());
}

#[test]
fn a_foreign_symbol_is_refused() {
    let source = KernelSource::new("sine", "m.model:3", |cg: &Cg| {
        cg.grid_kernel("sine", 1, 0, |k, i| {
            let at = cg.at(k.buffers[0], Elem::F32, i);
            let x = cg.load(crate::emit::Ty::F32, at);
            cg.store(cg.intrinsic("llvm.sin", &[x.ty], &[x], x.ty), at);
        });
    });
    let error = compile(&target(), &[source]).unwrap_err().to_string();
    assert_eq!(error, "sine (m.model:3): needs the symbols sinf, which no loader gives");
}

#[test]
fn a_kernel_that_is_not_emitted_is_refused() {
    let source = KernelSource::new("absent", "m.model:3", |_: &Cg| {});
    let error = compile(&target(), &[source]).unwrap_err().to_string();
    assert_eq!(error, "absent (m.model:3): the emitted module is malformed: no function absent");
}

#[test]
fn dumps_are_text() {
    let sources = [exp_kernel("exp")];
    assert!(llvm_ir(&target(), &sources).unwrap().contains("define void @exp("));
    assert!(assembly(&target(), &sources).unwrap().contains("vfmadd"));
}

#[test]
fn loops_and_conditionals_nest() {
    let source = KernelSource::new("collatz", "test", |cg: &Cg| {
        cg.grid_kernel("collatz", 1, 0, |k, i| {
            let start = [cg.add(i, 1), cg.i64(0)];
            let end = cg.while_(
                &start,
                |v| cg.cmp(Cmp::Ne, v[0], 1),
                |v| {
                    let odd = cg.cmp(Cmp::Ne, cg.and(v[0], 1), 0);
                    let up = || vec![cg.add(cg.mul(v[0], 3), 1)];
                    let next = cg.if_else(odd, up, || vec![cg.ashr(v[0], 1)]);
                    vec![next[0], cg.add(v[1], 1)]
                },
            );
            cg.store(end[1], cg.at(k.buffers[0], Elem::I64, i));
        });
    });
    let steps = run(&source, 8);
    assert_eq!(steps, [0, 1, 7, 2, 5, 8, 16, 3]);
}

/// A store of one narrowed lane writes that lane alone, even where the mask is a constant.
#[test]
fn a_masked_store_keeps_what_is_beside_it() {
    for (elem, one) in [(Elem::I8, 0xff), (Elem::I16, 0xffff), (Elem::I32, 0xffff_ffff)] {
        let source = KernelSource::new("narrow", "test", move |cg: &Cg| {
            cg.grid_kernel("narrow", 1, 0, |k, i| {
                let at = cg.at(k.buffers[0], Elem::I64, i);
                let zeros = cg.cast(cg.splat(cg.load(crate::emit::Ty::I64, at), 8), Elem::I32);
                let ones = cg.cast(cg.sub(zeros, 1), elem);
                cg.masked_store(ones, at, cg.mask_below(cg.i64(1), 8));
            });
        });
        for target in targets_here() {
            assert_eq!(run_on(&target, &source, 3), [one; 3], "{elem:?} on {}", target.name);
        }
    }
}

/// Those of the machines that kernels are made for which this one can stand for.
fn targets_here() -> Vec<Target> {
    let wide =
        Target { name: "avx512", cpu: "x86-64-v4", lanes: 16, vector_registers: 32, ..target() };
    let has_wide = std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl");
    let mut all = vec![target()];
    all.extend(has_wide.then_some(wide));
    all
}

fn run(source: &KernelSource, blocks: usize) -> Vec<i64> {
    run_on(&target(), source, blocks)
}

/// Runs a kernel of one i64 buffer through LLVM's own loader.
fn run_on(target: &Target, source: &KernelSource, blocks: usize) -> Vec<i64> {
    LlvmTarget::initialize_x86(&InitializationConfig::default());
    let ctx = Context::create();
    let cg = Cg::new(&ctx, "test", target);
    (source.emit)(&cg);
    let engine = cg.module.create_jit_execution_engine(OptimizationLevel::Default).unwrap();
    let address = engine.get_function_address(&source.name).unwrap();
    type Entry = unsafe extern "C" fn(*const *mut i64, *const i64, i64, i64, *mut u8);
    // SAFETY: the kernel ABI; the kernel writes one element a block.
    unsafe {
        let entry: Entry = std::mem::transmute(address);
        let mut out = vec![0i64; blocks];
        entry(&out.as_mut_ptr(), std::ptr::null(), 0, blocks as i64, std::ptr::null_mut());
        out
    }
}
