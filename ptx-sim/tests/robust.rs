//! Whatever the text and the launch: an answer or an error, never a panic.

use ptx_sim::{Arg, Device, Launch, Module};

/// Words and marks of a text, each with the blanks before it.
fn pieces(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut last_was_word = false;
    for c in text.chars() {
        let is_word = c.is_ascii_alphanumeric() || "_.%$:".contains(c);
        let starts = if is_word { !last_was_word } else { !c.is_whitespace() };
        if starts && out.last().is_some_and(|p| !p.trim().is_empty()) {
            out.push(String::new());
        }
        if let Some(piece) = out.last_mut() {
            piece.push(c);
        }
        last_was_word = is_word;
    }
    out
}

/// Registers of one letter are of a kind; so are numbers.
fn kind(piece: &str) -> String {
    let word = piece.trim();
    let digits = word.trim_start_matches(|c: char| c.is_ascii_digit());
    if digits.is_empty() { "0".to_string() } else { word.trim_end_matches(char::is_numeric).into() }
}

#[test]
fn mangled_kernels_are_refused_or_run() {
    let texts = [
        include_str!("ptx/vector_add.ptx"),
        include_str!("ptx/softmax.ptx"),
        include_str!("ptx/wide_o0.ptx"),
        include_str!("ptx/wide_o3.ptx"),
    ];
    let mut state = 1u64;
    let mut random = move |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let (mut n_loaded, mut n_refused) = (0, 0);
    for round in 0..600 {
        let mut pieces = pieces(texts[round % texts.len()]);
        for _ in 0..1 + random(2) {
            let (at, from) = (random(pieces.len()), random(pieces.len()));
            // Mostly another name or number of the same kind, which may well load.
            let same: Vec<usize> =
                (0..pieces.len()).filter(|&i| kind(&pieces[i]) == kind(&pieces[at])).collect();
            match random(8) {
                0 => drop(pieces.remove(at)),
                1 => pieces.swap(at, from),
                2 => pieces[at] = " 4294967295".to_string(),
                _ => pieces[at] = pieces[same[random(same.len())]].clone(),
            }
        }
        let Ok(module) = Module::load(&pieces.concat()) else {
            n_refused += 1;
            continue;
        };
        n_loaded += 1;
        for kernel in module.kernels() {
            let mut device = Device::new();
            let p = device.alloc(4096);
            let params = module.params(kernel).expect("there");
            let argument = |bytes: u64| match bytes {
                8 => Arg::Ptr(p),
                n => Arg::Bytes(vec![16; n as usize]),
            };
            let args: Vec<Arg> = params.iter().map(|(_, bytes)| argument(*bytes)).collect();
            for (block, cluster) in [(32, 1), (64, 1), (384, 2)] {
                let mut launch = Launch::new(2, block);
                launch.cluster = [cluster, 1, 1];
                launch.dynamic_shared_bytes = 4096;
                launch.instructions_max = 4000;
                // Whether it succeeds is not the question.
                let _ = device.launch(&module, kernel, &launch, &args);
            }
        }
    }
    assert!(n_loaded > 50 && n_refused > 50, "{n_loaded} loaded, {n_refused} refused");
}

#[test]
fn absurd_launches_are_refused() {
    let module = Module::load(include_str!("ptx/softmax.ptx")).expect("known");
    let mut device = Device::new();
    let args = [Arg::Ptr(0), Arg::U64(1)];
    let most = u32::MAX;
    for (grid, block, cluster, shared) in [
        ([most; 3], [32, 1, 1], [1; 3], 0),
        ([1; 3], [most; 3], [1; 3], 0),
        ([1; 3], [0; 3], [1; 3], 0),
        ([2, 1, 1], [32, 1, 1], [0; 3], 0),
        ([2, 1, 1], [32, 1, 1], [most; 3], 0),
        ([3, 1, 1], [32, 1, 1], [2, 1, 1], 0),
        ([1; 3], [32, 1, 1], [1; 3], most),
    ] {
        let mut launch = Launch::new(1, 32);
        (launch.grid, launch.block, launch.cluster) = (grid, block, cluster);
        launch.dynamic_shared_bytes = shared;
        let error = device.launch(&module, "integers", &launch, &args).unwrap_err();
        assert_eq!(error.kind, ptx_sim::ErrorKind::Launch, "{error}");
    }
}
