//! A plan as text, as JSON, and as a trace for Perfetto or chrome://tracing.

use std::fmt::Write;

use serde_json::{Value, json};
use weft_schedule::{Cell, Table};

use crate::cluster::{Cluster, WhatIf};
use crate::compiled;
use crate::compiled_step::Step;
use crate::rounds::Rounds;
use crate::search::Found;
use crate::serve::{Served, Serving};
use crate::step::{Layout, Plan};
use crate::streams::Streams;
use crate::weave::Times;

const GB: f64 = 1e9;

/// For reading.
pub fn text(p: &Plan, cluster: &Cluster, layout: &Layout) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let mut put = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{line}");
    };
    put(format_args!(
        "{} {}s: {} stages on {} ranks, {} of data, {} of tensor; experts on {}",
        layout.n_gpus(),
        cluster.name,
        layout.table.n_stages(),
        layout.table.n_ranks(),
        layout.data,
        layout.tensor,
        layout.experts
    ));
    put(format_args!(
        "\nmicro-batch in ms, woven   attn(F)  mlp(F)  attn(B)  mlp(B)  attn(W)  mlp(W)  \
         dispatch(F) combine(F) combine(B) dispatch(B)"
    ));
    for run in p.units.chunk_by(|a, b| a.1 == b.1) {
        let run_names: Vec<String> = run.iter().map(|(n, _)| n.clone()).collect();
        let t = &run[0].1;
        let compute = [&t.forward, &t.input, &t.weight].map(|t| [t.attention, t.mlp]);
        let ms: Vec<String> =
            compute.as_flattened().iter().map(|s| format!("{:8.2}", s * 1e3)).collect();
        let exchange = [t.forward.dispatch, t.forward.combine, t.input.dispatch, t.input.combine];
        let exchange = exchange.map(|t| format!("{:10.2}", t.span() * 1e3));
        put(format_args!("{:24} {} {}", names(&run_names), ms.join(""), exchange.join(" ")));
    }
    put(format_args!("\nstage  forward backward    input   weight  units (ms)"));
    for (s, stage) in p.stages.iter().enumerate() {
        let ms = |t: f64| t * 1e3;
        put(format_args!(
            "{s:5} {:8.1} {:8.1} {:8.1} {:8.1}  {}",
            ms(stage.forward),
            ms(stage.backward),
            ms(stage.input),
            ms(stage.weight),
            names(&stage.units)
        ));
    }
    if let Some((stages, w)) = p.slowest_pair() {
        let (busy, covered) = w.covered();
        put(format_args!(
            "\nslowest pair, forward of stage {} with backward of {}: {:.1} ms; compute busy {:.1} \
             ms, exchanges {:.1} ms, {:.1} % of that under compute",
            stages.0,
            stages.1,
            w.seconds() * 1e3,
            w.computing() * 1e3,
            busy * 1e3,
            percent(covered, busy)
        ));
    }
    put(format_args!(
        "\nrank   weights gradients optimizer activations buffers    total  (GB of {:.1})",
        cluster.memory_bytes / GB
    ));
    for (r, m) in p.memory.iter().enumerate() {
        put(format_args!(
            "{r:4} {:9.2} {:9.2} {:9.2} {:11.2} {:7.2} {:8.2}{}",
            m.weights / GB,
            m.gradients / GB,
            m.optimizer / GB,
            m.activations / GB,
            m.buffers / GB,
            m.total() / GB,
            if m.total() > cluster.memory_bytes { "  too much" } else { "" }
        ));
    }
    put(format_args!(
        "\nstep {:.3} s: pipeline {:.3} s, of it idle on the rank that waits longest {:.3} s \
         ({:.1} %); gradients and optimizer {:.3} s",
        p.step_seconds,
        p.timeline.makespan(),
        p.bubble_seconds,
        percent(p.bubble_seconds, p.timeline.makespan()),
        p.optimizer_seconds
    ));
    put(format_args!(
        "exchanges with experts: {:.3} s on the rank that has most, {:.1} % under compute, {:.3} s \
         exposed",
        p.exchange_seconds,
        percent(p.covered_seconds, p.exchange_seconds),
        p.exchange_seconds - p.covered_seconds
    ));
    put(format_args!(
        "{:.1} M tokens a step, {:.0} tokens/s on each GPU",
        p.tokens_per_step / 1e6,
        p.tokens_per_s_per_gpu
    ));
    if !p.fits {
        put(format_args!("it does not fit: see `too much` above"));
    }
    out
}

/// Steps of compiled programs, with what adds gradients up and without, beside the plan's.
pub fn compiled_steps(with_sums: &Step, without: &Step, p: &Plan) -> String {
    let planned = Step {
        step_seconds: p.step_seconds,
        pipeline_seconds: p.timeline.makespan(),
        bubble_seconds: p.bubble_seconds,
        tokens_per_s_per_gpu: p.tokens_per_s_per_gpu,
        exchange_seconds: p.exchange_seconds,
        covered_seconds: p.covered_seconds,
    };
    let head = "step (s)                        whole pipeline     idle exchange  covered  \
                tokens/s on each GPU\n";
    let mut out = head.to_string();
    let rows = [
        ("as compiled", with_sums),
        ("  without adding gradients up", without),
        ("as planned", &planned),
    ];
    for (what, s) in rows {
        out += &format!(
            "{what:29} {:7.3} {:8.3} {:8.3} {:8.3} {:6.1} % {:9.0}\n",
            s.step_seconds,
            s.pipeline_seconds,
            s.bubble_seconds,
            s.exchange_seconds,
            percent(s.covered_seconds, s.exchange_seconds),
            s.tokens_per_s_per_gpu
        );
    }
    out
}

/// Functions of a compiled program, and what of their exchanges lies under compute.
pub fn cells(cells: &[compiled::Cell]) -> String {
    let mut out = "cell, as compiled (ms)          whole  compute exchange  covered\n".to_string();
    for c in cells {
        let (busy, covered) = c.streams.covered();
        let share = if busy > 0.0 { format!("{:7.1} %", covered / busy * 1e2) } else { "".into() };
        let ms = |t: f64| t * 1e3;
        let whole = ms(c.streams.seconds());
        let compute = ms(c.streams.computing());
        out += &format!("{whole:36.1} {compute:8.1} {:8.1} {share:9}  {}\n", ms(busy), c.name);
    }
    out
}

/// A unit that serves, for reading.
pub fn served(s: &Served, of: &Serving, cluster: &Cluster) -> String {
    let ms = |t: f64| t * 1e3;
    let [before, core, shared, mlp, dispatch, combine] = s.layer;
    let what = if of.decode { "decoding" } else { "prefill" };
    format!(
        "{what} on {} {}s, {} requests of {} tokens on each in two micro-batches\n\
         a layer and micro-batch (ms): attention {:.3} + {:.3}, shared {:.3}, mlp {:.3}; dispatch \
         {:.3}, combine {:.3}\n\
         exchanges: {:.1} ms, {:.1} % under compute\n\
         memory of a GPU: weights {:.1} GB, cache {:.1} GB of {:.1}{}\n\
         step {:.1} ms: {:.0} tokens/s on each GPU, {:.0} on a node of {}\n",
        of.n_gpus,
        cluster.name,
        of.requests,
        of.tokens_per_request,
        ms(before),
        ms(core),
        ms(shared),
        ms(mlp),
        ms(dispatch),
        ms(combine),
        ms(s.exchange_seconds),
        percent(s.covered_seconds, s.exchange_seconds),
        s.weight_bytes / GB,
        s.cache_bytes / GB,
        cluster.memory_bytes / GB,
        if s.fits { "" } else { "; it does not fit" },
        ms(s.step_seconds),
        s.tokens_per_s_per_gpu,
        s.tokens_per_s_per_node,
        of.node,
    )
}

/// The room for what exchanges bring, and what more takes.
pub fn rounds(r: &Rounds, s: &Served) -> String {
    let mean = r.odds.iter().sum::<f64>() / r.odds.len().max(1) as f64;
    let most = r.odds.iter().copied().fold(0.0, f64::max);
    format!(
        "exchanges bring {} rows to a GPU on average and have room for {}: further rounds in \
         {:.2} % of them, {:.2} % in the worst layer\n\
         further rounds: {:.3} ms of the step on average\n",
        r.rows,
        r.room,
        100.0 * mean,
        100.0 * most,
        1e3 * s.rounds_seconds
    )
}

/// And for programs.
pub fn served_json(s: &Served, rounds: Option<&Rounds>, of: &Serving, cluster: &Cluster) -> Value {
    let room = rounds.map(|r| json!({ "rows": r.rows, "room": r.room, "odds": r.odds }));
    json!({
        "cluster": cluster.name, "gpus": of.n_gpus, "decode": of.decode, "requests": of.requests,
        "step_s": s.step_seconds, "tokens_per_s_per_gpu": s.tokens_per_s_per_gpu,
        "tokens_per_s_per_node": s.tokens_per_s_per_node, "weight_bytes": s.weight_bytes,
        "cache_bytes": s.cache_bytes, "exchange_s": s.exchange_seconds,
        "exchange_covered_s": s.covered_seconds, "fits": s.fits, "rounds": room,
        "rounds_s": s.rounds_seconds,
    })
}

/// How long so many tokens take.
pub fn budget(p: &Plan, layout: &Layout, tokens: f64) -> String {
    let gpu_hours = tokens / p.tokens_per_s_per_gpu / 3600.0;
    let days = gpu_hours / layout.n_gpus() as f64 / 24.0;
    format!("{tokens:.3e} tokens: {gpu_hours:.0} GPU hours, {days:.1} days\n")
}

/// Layouts that were found, the fastest first.
pub fn found(all: &[Found], variants: &[String], most: usize) -> String {
    let mut out = format!(
        "{:>8} {:>6} {:>4} {:>6} {:>7} {:16} {:>6} {:>9} {:14} {:>7} {:>8}\n",
        "tokens/s",
        "step s",
        "data",
        "tensor",
        "experts",
        "schedule",
        "ranks",
        "stages a",
        "recompute",
        "GB most",
        "idle %"
    );
    for f in all.iter().take(most) {
        let bytes = f.plan.memory.iter().map(|m| m.total()).fold(0.0, f64::max);
        let _ = writeln!(
            out,
            "{:8.0} {:6.2} {:4} {:6} {:7} {:16} {:6} {:9} {:14} {:7.1} {:8.1}",
            f.plan.tokens_per_s_per_gpu,
            f.plan.step_seconds,
            f.layout.data,
            f.layout.tensor,
            f.layout.experts,
            f.schedule.as_str(),
            f.size.n_ranks,
            f.size.stages_per_rank,
            variants[f.variant],
            bytes / GB,
            percent(f.plan.bubble_seconds, f.plan.timeline.makespan()),
        );
    }
    out
}

/// What each change of the hardware gains, beside the plan without.
pub fn what_ifs(base: &Plan, all: &[(WhatIf, Plan)]) -> String {
    let mut out = format!("{:28} {:>8} {:>8}\n", "what if", "step s", "gain %");
    for (w, p) in all {
        let gain = percent(base.step_seconds - p.step_seconds, base.step_seconds);
        let _ =
            writeln!(out, "{:28} {:8.3} {gain:8.1}  {}", w.as_str(), p.step_seconds, w.meaning());
    }
    out
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { 100.0 * part / whole } else { 0.0 }
}

/// `layers.1.0 .. layers.1.3, head`.
fn names(units: &[String]) -> String {
    let stem = |n: &str| n.rsplit_once('.').map_or(n.to_string(), |(s, _)| s.to_string());
    let runs = units.chunk_by(|a, b| stem(a) == stem(b));
    let run = |r: &[String]| match r {
        [one] => one.clone(),
        [first, .., last] => format!("{first} .. {last}"),
        [] => String::new(),
    };
    runs.map(run).collect::<Vec<_>>().join(", ")
}

/// For programs; seconds and bytes.
pub fn json(p: &Plan, cluster: &Cluster, layout: &Layout) -> Value {
    let memory = p.memory.iter().map(|m| {
        json!({
            "weights": m.weights, "gradients": m.gradients, "optimizer": m.optimizer,
            "activations": m.activations, "buffers": m.buffers, "total": m.total(),
        })
    });
    let stages = p.stages.iter().map(|s| {
        json!({
            "units": s.units, "forward_s": s.forward, "backward_s": s.backward,
            "input_gradient_s": s.input, "weight_gradient_s": s.weight,
        })
    });
    let pairs = p.pairs.iter().map(|((f, b), w)| {
        let (busy, covered) = w.covered();
        json!({
            "forward_stage": f, "backward_stage": b, "seconds": w.seconds(),
            "compute_s": w.computing(), "exchange_s": busy, "covered_s": covered,
        })
    });
    let part = |t: &Times| {
        json!({
            "attention_s": t.attention, "mlp_s": t.mlp, "dispatch_s": t.dispatch.span(),
            "combine_s": t.combine.span(),
        })
    };
    let units = p.units.iter().map(|(name, t)| {
        json!({
            "name": name, "forward": part(&t.forward), "input_gradient": part(&t.input),
            "weight_gradient": part(&t.weight),
        })
    });
    json!({
        "cluster": cluster.name,
        "gpus": layout.n_gpus(),
        "step_s": p.step_seconds,
        "pipeline_s": p.timeline.makespan(),
        "bubble_s": p.bubble_seconds,
        "optimizer_s": p.optimizer_seconds,
        "exchange_s": p.exchange_seconds,
        "exchange_covered_s": p.covered_seconds,
        "tokens_per_step": p.tokens_per_step,
        "tokens_per_s_per_gpu": p.tokens_per_s_per_gpu,
        "fits": p.fits,
        "memory_bytes_by_rank": memory.collect::<Vec<_>>(),
        "units": units.collect::<Vec<_>>(),
        "stages": stages.collect::<Vec<_>>(),
        "pairs": pairs.collect::<Vec<_>>(),
    })
}

/// The ranks of a pipeline as processes, and the slowest pair's two streams as one more.
pub fn trace(p: &Plan, table: &Table) -> Value {
    let event = |name: String, pid: usize, tid: &str, start: f64, end: f64| {
        json!({
            "name": name, "ph": "X", "pid": pid, "tid": tid, "ts": start * 1e6,
            "dur": (end - start) * 1e6,
        })
    };
    let mut events = vec![];
    let process = |pid: usize, name: String| {
        let args = json!({ "name": name });
        json!({ "name": "process_name", "ph": "M", "pid": pid, "args": args })
    };
    for (rank, spans) in p.timeline.spans.iter().enumerate() {
        events.push(process(rank, format!("rank {rank}")));
        for span in spans {
            let name = match table.rows[rank][span.cell] {
                Cell::Idle => continue,
                Cell::One(a) => a.to_string(),
                Cell::Pair { forward, backward } => format!("{forward} & {backward}"),
            };
            events.push(event(name, rank, "pipeline", span.start, span.end));
        }
    }
    if let Some((_, w)) = p.slowest_pair() {
        let pid = p.timeline.spans.len();
        events.push(process(pid, "slowest pair".to_string()));
        for t in &w.tasks {
            let stream = if t.exchange { "exchange" } else { "compute" };
            events.push(event(format!("{} {}", t.name, t.layer), pid, stream, t.start, t.end));
        }
    }
    json!({ "traceEvents": events, "displayTimeUnit": "ms" })
}

impl Plan {
    /// The stages of the slowest pair, and how it is woven.
    pub fn slowest_pair(&self) -> Option<((usize, usize), &Streams)> {
        let longest = |a: &&Streams, b: &&Streams| a.seconds().total_cmp(&b.seconds());
        self.pairs.iter().map(|(s, w)| (*s, w)).max_by(|(_, a), (_, b)| longest(a, b))
    }
}
