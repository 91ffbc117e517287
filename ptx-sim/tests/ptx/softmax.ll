; A warp a row: y[r, c] = exp(x[r, c] - max) / sum, in bf16, cols a multiple of 32; the exponential
; as 2^(x log2 e). Also a call, a switch, a constant table and an integer division, as LLVM prints them.
target triple = "nvptx64-nvidia-cuda"
@table = addrspace(4) constant [4 x i32] [i32 3, i32 5, i32 7, i32 11], align 16
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
declare float @llvm.maxnum.f32(float, float)
declare float @llvm.exp2.f32(float)
declare float @llvm.nvvm.shfl.sync.bfly.f32(i32, float, i32, i32)
define internal float @warp_max(float %v) noinline convergent {
  %a = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %v, i32 16, i32 31)
  %b = call float @llvm.maxnum.f32(float %v, float %a)
  %c = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %b, i32 8, i32 31)
  %d = call float @llvm.maxnum.f32(float %b, float %c)
  %e = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %d, i32 4, i32 31)
  %f = call float @llvm.maxnum.f32(float %d, float %e)
  %g = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %f, i32 2, i32 31)
  %h = call float @llvm.maxnum.f32(float %f, float %g)
  %i = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %h, i32 1, i32 31)
  %j = call float @llvm.maxnum.f32(float %h, float %i)
  ret float %j
}
define internal float @warp_sum(float %v) noinline convergent {
  %a = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %v, i32 16, i32 31)
  %b = fadd float %v, %a
  %c = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %b, i32 8, i32 31)
  %d = fadd float %b, %c
  %e = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %d, i32 4, i32 31)
  %f = fadd float %d, %e
  %g = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %f, i32 2, i32 31)
  %h = fadd float %f, %g
  %i = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %h, i32 1, i32 31)
  %j = fadd float %h, %i
  ret float %j
}
define ptx_kernel void @softmax(ptr addrspace(1) %x, ptr addrspace(1) %y, i32 %cols) "nvvm.reqntid"="32" {
entry:
  %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %r = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  %row = mul i32 %r, %cols
  br label %scan
scan:
  %c = phi i32 [ %t, %entry ], [ %cn, %scan ]
  %m = phi float [ 0xFFF0000000000000, %entry ], [ %mn, %scan ]
  %ix = add i32 %row, %c
  %ix64 = zext i32 %ix to i64
  %px = getelementptr bfloat, ptr addrspace(1) %x, i64 %ix64
  %v = load bfloat, ptr addrspace(1) %px
  %vf = fpext bfloat %v to float
  %mn = call float @llvm.maxnum.f32(float %m, float %vf)
  %cn = add i32 %c, 32
  %more = icmp ult i32 %cn, %cols
  br i1 %more, label %scan, label %scanned
scanned:
  %max = call float @warp_max(float %mn)
  br label %sum
sum:
  %c2 = phi i32 [ %t, %scanned ], [ %cn2, %sum ]
  %s = phi float [ 0.0, %scanned ], [ %sn, %sum ]
  %ix2 = add i32 %row, %c2
  %ix264 = zext i32 %ix2 to i64
  %px2 = getelementptr bfloat, ptr addrspace(1) %x, i64 %ix264
  %v2 = load bfloat, ptr addrspace(1) %px2
  %v2f = fpext bfloat %v2 to float
  %d = fsub float %v2f, %max
  %dl = fmul float %d, 0x3FF7154760000000
  %e = call float @llvm.exp2.f32(float %dl)
  %sn = fadd float %s, %e
  %cn2 = add i32 %c2, 32
  %more2 = icmp ult i32 %cn2, %cols
  br i1 %more2, label %sum, label %summed
summed:
  %total = call float @warp_sum(float %sn)
  br label %write
write:
  %c3 = phi i32 [ %t, %summed ], [ %cn3, %write ]
  %ix3 = add i32 %row, %c3
  %ix364 = zext i32 %ix3 to i64
  %px3 = getelementptr bfloat, ptr addrspace(1) %x, i64 %ix364
  %py3 = getelementptr bfloat, ptr addrspace(1) %y, i64 %ix364
  %v3 = load bfloat, ptr addrspace(1) %px3
  %v3f = fpext bfloat %v3 to float
  %d3 = fsub float %v3f, %max
  %dl3 = fmul float %d3, 0x3FF7154760000000
  %e3 = call float @llvm.exp2.f32(float %dl3)
  %q = fdiv float %e3, %total
  %qb = fptrunc float %q to bfloat
  store bfloat %qb, ptr addrspace(1) %py3
  %cn3 = add i32 %c3, 32
  %more3 = icmp ult i32 %cn3, %cols
  br i1 %more3, label %write, label %end
end:
  ret void
}
define ptx_kernel void @integers(ptr addrspace(1) %y, i64 %q) {
entry:
  %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %k = and i32 %t, 3
  %tp = getelementptr [4 x i32], ptr addrspace(4) @table, i32 0, i32 %k
  %tv = load i32, ptr addrspace(4) %tp
  %tw = zext i32 %tv to i64
  %d = udiv i64 %q, %tw
  %m = urem i64 %q, %tw
  %dm = add i64 %d, %m
  switch i32 %t, label %end [ i32 0, label %a
    i32 1, label %b
    i32 2, label %c
    i32 3, label %e
    i32 4, label %f ]
a:
  br label %end
b:
  %vb = mul i64 %dm, 3
  br label %end
c:
  %vc = xor i64 %dm, -1
  br label %end
e:
  %ve = ashr i64 %dm, 2
  br label %end
f:
  %vf = shl i64 %dm, 5
  br label %end
end:
  %v = phi i64 [ %dm, %entry ], [ %dm, %a ], [ %vb, %b ], [ %vc, %c ], [ %ve, %e ], [ %vf, %f ]
  %i64 = zext i32 %t to i64
  %p = getelementptr i64, ptr addrspace(1) %y, i64 %i64
  store i64 %v, ptr addrspace(1) %p
  ret void
}
