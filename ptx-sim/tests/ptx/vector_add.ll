; z[i] = x[i] + y[i] for i < n; compiled with llc -mcpu=sm_90a -mattr=+ptx83 -O3.
target triple = "nvptx64-nvidia-cuda"
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
define ptx_kernel void @vector_add(ptr addrspace(1) noalias readonly %x, ptr addrspace(1) noalias readonly %y, ptr addrspace(1) %z, i32 %n) "nvvm.reqntid"="64" {
entry:
  %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %c = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  %m = mul i32 %c, 64
  %i = add i32 %m, %t
  %p = icmp slt i32 %i, %n
  br i1 %p, label %body, label %end
body:
  %i64 = sext i32 %i to i64
  %px = getelementptr float, ptr addrspace(1) %x, i64 %i64
  %py = getelementptr float, ptr addrspace(1) %y, i64 %i64
  %pz = getelementptr float, ptr addrspace(1) %z, i64 %i64
  %a = load float, ptr addrspace(1) %px
  %b = load float, ptr addrspace(1) %py
  %s = fadd float %a, %b
  store float %s, ptr addrspace(1) %pz
  br label %end
end:
  ret void
}
