//! Kernel objects: what is loaded computes what its source says, and what is refused says why.

mod kernels;

use weft_runtime::elf::Code;

fn call(symbol: &str, buffers: &[*mut u8], scalars: &[i64], blocks: i64) {
    let code = Code::load("kernels.o", kernels::KERNELS).unwrap();
    let kernel = code.kernel(symbol).unwrap();
    let mut scratch = vec![0u64; 512];
    // SAFETY: the arguments are those of the kernel's source.
    unsafe {
        kernel(buffers.as_ptr(), scalars.as_ptr(), 0, blocks, scratch.as_mut_ptr().cast());
    }
}

fn check_refused(bytes: &[u8], expect: &str) {
    assert_eq!(Code::load("0 (avx2)", bytes).unwrap_err().to_string(), expect);
}

#[test]
fn arguments_and_float_scalars_arrive() {
    let (mut x, mut w, mut y) = ([1f32, 2.0, 3.0, 4.0], [10f32, 100.0], [0f32; 4]);
    let buffers = [x.as_mut_ptr().cast(), w.as_mut_ptr().cast(), y.as_mut_ptr().cast()];
    call("f32_scale", &buffers, &[2, i64::from(0.5f32.to_bits())], 2);
    assert_eq!(y, [5.0, 100.0, 15.0, 200.0]);
}

#[test]
fn memcpy_and_memset_are_bound() {
    let (mut x, mut y) = ([1f32, 2.0, 3.0], [0f32; 3]);
    call("f32_reverse", &[x.as_mut_ptr().cast(), y.as_mut_ptr().cast()], &[3], 1);
    assert_eq!(y, [3.0, 2.0, 1.0]);
}

#[test]
fn constants_of_the_object_are_read() {
    let mut y = [0f32; 9];
    call("f32_table", &[y.as_mut_ptr().cast()], &[100], 9);
    assert_eq!(y, [101., 102., 104., 108., 116., 132., 164., 228., 101.]);
}

#[test]
fn jump_tables_work() {
    for (choice, expected) in [(0, 17), (1, 12), (2, 21), (3, -7), (5, 0), (6, -1), (70, 0)] {
        let mut y = [7i64];
        call("i64_choose", &[y.as_mut_ptr().cast()], &[choice], 1);
        assert_eq!(y[0], expected, "choice {choice}");
    }
}

#[test]
fn absolute_pointers_in_constant_data_are_relocated() {
    for (choice, expected) in [(0, 14), (1, 49)] {
        let mut y = [7i64];
        call("i64_call", &[y.as_mut_ptr().cast()], &[choice], 1);
        assert_eq!(y[0], expected);
    }
}

#[test]
fn an_unknown_symbol_is_named() {
    let code = Code::load("kernels.o", kernels::KERNELS).unwrap();
    let error = code.kernel("f32_gemm").unwrap_err().to_string();
    assert_eq!(error, "object kernels.o: has no function f32_gemm");
    assert!(code.functions().eq([
        "empty",
        "f32_reverse",
        "f32_scale",
        "f32_table",
        "i64_add",
        "i64_call",
        "i64_choose"
    ]));
}

#[test]
fn what_a_kernel_may_not_do_is_refused() {
    check_refused(kernels::UNDEFINED, "object 0 (avx2): undefined symbol sin");
    check_refused(
        kernels::GOT,
        "object 0 (avx2): relocation 42 against memcpy is refused: \
         a kernel has no global offset table",
    );
    check_refused(
        kernels::ABSOLUTE,
        "object 0 (avx2): relocation 11 against .rodata is refused: \
         the code is not position-independent",
    );
    check_refused(kernels::WRITABLE, "object 0 (avx2): section .bss is writable");
}

#[test]
fn something_else_is_refused() {
    for other in [&b""[..], b"\x7fELF", &kernels::KERNELS[..100]] {
        assert!(Code::load("other", other).is_err());
    }
}

/// Damage anywhere gives an object or an error. What was loaded is not called.
#[test]
fn damage_never_panics() {
    for position in 0..kernels::KERNELS.len() {
        for value in [0x00, 0x7f, 0xff, kernels::KERNELS[position] ^ 1] {
            let mut bytes = kernels::KERNELS.to_vec();
            bytes[position] = value;
            let _ = Code::load("damaged", &bytes);
        }
        let _ = Code::load("short", &kernels::KERNELS[..position]);
    }
}
