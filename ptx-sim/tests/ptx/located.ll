; x[0] += 1 with line information, a part of it inlined; compiled with llc -mcpu=sm_90a -mattr=+ptx83 -O3.
target triple = "nvptx64-nvidia-cuda"
define ptx_kernel void @increment(ptr addrspace(1) %x) !dbg !4 {
  %v = load float, ptr addrspace(1) %x, !dbg !7
  %w = fadd float %v, 1.0, !dbg !8
  store float %w, ptr addrspace(1) %x, !dbg !9
  ret void, !dbg !9
}
!llvm.dbg.cu = !{!0}
!llvm.module.flags = !{!2, !3}
!0 = distinct !DICompileUnit(language: DW_LANG_C, file: !1, producer: "weft", isOptimized: true, runtimeVersion: 0, emissionKind: LineTablesOnly)
!1 = !DIFile(filename: "nano.model", directory: "")
!2 = !{i32 2, !"Dwarf Version", i32 2}
!3 = !{i32 2, !"Debug Info Version", i32 3}
!4 = distinct !DISubprogram(name: "increment", scope: !1, file: !1, line: 3, type: !5, unit: !0)
!5 = !DISubroutineType(types: !6)
!6 = !{}
!7 = !DILocation(line: 4, column: 1, scope: !4)
!10 = distinct !DISubprogram(name: "inner", scope: !1, file: !1, line: 20, type: !5, unit: !0)
!11 = distinct !DILocation(line: 6, column: 2, scope: !4)
!8 = !DILocation(line: 21, column: 1, scope: !10, inlinedAt: !11)
!9 = !DILocation(line: 7, column: 1, scope: !4)
