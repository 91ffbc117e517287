//! Caches in pages, on every machine's kernels: what is written and read through a table is what
//! the interpreter writes and reads, and on a CPU to the bit what caches in one piece give.

mod machines;

use machines::{Draw, check, module};
use weft_ir::interp::{Data, Sizes, Tensor};
use weft_ir::module::Module;

/// Starts and pages are drawn from as many.
const DRAW: Draw = Draw { low: -1.0, high: 1.0, ints: 40.0 };

/// Attention of `s` queries over 40 pages of 24 positions, 3 of a request; two parts of the score.
fn attention(dtype: &str, s: &str, (shared, own): (u64, u64), attrs: &str) -> String {
    let start = if attrs.contains("offset") { ", %start" } else { "" };
    format!(
        "dims {{ B <= 3, S <= 30 }}
func @f(%q0: {dtype}[B, {s}, 4, 40], %q1: {dtype}[B, {s}, 4, 7], %k0: {dtype}[40, 24, {own}, 40],
        %k1: {dtype}[40, 24, {shared}, 7], %v: {dtype}[40, 24, {own}, 20], %start: i32[B],
        %pages: i32[B, 3]) -> (o: {dtype}[B, {s}, 4, 20], lse: f32[B, 4, {s}]) {{
  %o, %lse = attention %q0, %q1, %k0, %k1, %v{start}, %pages
    {{parts = 2, scale = 0.3, pages = true{attrs}}} : {dtype}[B, {s}, 4, 20], f32[B, 4, {s}]
  return %o, %lse
}}"
    )
}

#[test]
fn attention_reads_keys_through_the_table() {
    for (s, heads, attrs) in [
        ("1", (1, 1), ", causal = true, offset = true"),
        ("S", (1, 2), ", causal = true, offset = true"),
        ("S", (2, 4), ""),
    ] {
        for (dtype, tolerance) in [("f32", 4e-6), ("bf16", 1.0 / 128.0)] {
            let m = module(&attention(dtype, s, heads, attrs));
            let given = [("B", 3), ("S", 29)];
            let given = given.into_iter().filter(|(n, _)| m.find_sym(n).is_some());
            check(&m, "f", &given.collect::<Vec<_>>(), DRAW, tolerance);
        }
    }
}

#[test]
fn a_cache_is_written_through_the_table() {
    // Requests that share no page: each has its own third of the pool. Of fewer positions than a
    // page has no two are written to one row, whatever pages are drawn.
    for dtype in ["f32", "bf16"] {
        let m = module(&format!(
            "dims {{ B <= 3, S <= 30 }}
func @f(%pool: state {dtype}[120, 24, 2, 5], %x: {dtype}[B, S, 2, 5], %start: i32[B],
        %pages: i32[B, 3])
    -> (all: {dtype}[120, 24, 2, 5], pool: state {dtype}[120, 24, 2, 5]) donates (0 -> 1) {{
  %1 = iota {{dim = 0, type = i32[B, 3]}} : i32[B, 3]
  %2 = constant {{value = 3, type = i32[B, 3]}} : i32[B, 3]
  %3 = mul %pages, %2 : i32[B, 3]
  %4 = add %3, %1 : i32[B, 3]
  %all, %next = cache_append %pool, %x, %start, %4
    : {dtype}[120, 24, 2, 5], state {dtype}[120, 24, 2, 5]
  return %all, %next
}}"
        ));
        check(
            &m,
            "f",
            &[("B", 3), ("S", 22)],
            DRAW,
            if dtype == "f32" { 0.0 } else { 1.0 / 128.0 },
        );
    }
}

/// The same attention over keys in one piece.
fn in_one_piece(dtype: &str, s: &str, (shared, own): (u64, u64), attrs: &str) -> String {
    let paged = attention(dtype, s, (shared, own), attrs);
    let whole = paged.replace("[40, 24, ", "[B, 72, ").replace(", pages = true", "");
    whole.replace(", %pages\n", "\n")
}

#[test]
fn on_a_cpu_pages_change_no_bit() {
    for (s, heads) in [("1", (1, 1)), ("S", (1, 2))] {
        for dtype in ["f32", "bf16"] {
            let attrs = ", causal = true, offset = true";
            let paged = module(&attention(dtype, s, heads, attrs));
            let whole = module(&in_one_piece(dtype, s, heads, attrs));
            let n = [("B", 3), ("S", 29)];
            let sizes_of = |m: &Module| -> Sizes {
                n.iter().filter_map(|(n, size)| Some((m.find_sym(n)?, *size))).collect()
            };
            let run = |m: &Module, args: &[Tensor]| {
                let f = m.find("f").expect("an entry");
                let (_, device, graph) = machines::cpu(m, "f");
                machines::run(device, &graph, m, f, args, &sizes_of(m))
            };
            let f = paged.find("f").expect("an entry");
            let mut args = machines::arguments(&paged, f, &sizes_of(&paged), 2, DRAW);
            // Pages that differ, and starts as far as they reach.
            args[5] = Tensor::i32(&[3], vec![40, 0, 23]);
            args[6] = Tensor::i32(&[3, 3], vec![7, 39, 0, 1, 2, 3, 30, 8, 31]);
            let found = run(&paged, &args);
            let table = args[6].numbers();
            for pool in &mut args[2..5] {
                let each: usize = pool.dims[1..].iter().product();
                let numbers = pool.numbers();
                let page = |page: &f64| numbers[*page as usize * each..][..each].to_vec();
                pool.data = Data::Float(table.iter().flat_map(page).collect());
                (pool.dims[0], pool.dims[1]) = (3, 72);
            }
            assert_eq!(run(&whole, &args), found, "{dtype}, {s} queries");
        }
    }
}

/// On a GPU latents that all heads share are decoded on tensor cores where pages hold whole blocks
/// of keys, by plain threads where they do not.
#[test]
fn shared_latents_in_pages_of_whole_blocks_are_decoded_on_tensor_cores() {
    for (page, kernel) in [(64, "sm90a_bf16_latent_attention_64_8"), (48, "sm90_simt_")] {
        let m = module(&format!(
            "dims {{ B <= 3 }}
func @f(%q0: bf16[B, 1, 4, 64], %q1: bf16[B, 1, 4, 8], %k0: bf16[40, {page}, 1, 64],
        %k1: bf16[40, {page}, 1, 8], %start: i32[B], %more: i32[B], %pages: i32[B, 10])
    -> (o: bf16[B, 1, 4, 64], lse: f32[B, 4, 1]) {{
  %1 = constant {{value = 11, type = i32[B]}} : i32[B]
  %2 = mul %start, %1 : i32[B]
  %3 = add %2, %more : i32[B]
  %o, %lse = attention %q0, %q1, %k0, %k1, %k0, %3, %pages
    {{parts = 2, scale = 0.3, causal = true, offset = true, pages = true}}
    : bf16[B, 1, 4, 64], f32[B, 4, 1]
  return %o, %lse
}}"
        ));
        check(&m, "f", &[("B", 3)], DRAW, 1.0 / 128.0);
        let (_, _, graph) = machines::ptx(&m, "f");
        let names: Vec<&str> = graph.kernels.iter().map(|k| k.name.as_str()).collect();
        assert!(names.iter().any(|n| n.starts_with(kernel)), "{kernel}: {names:?}");
    }
}
