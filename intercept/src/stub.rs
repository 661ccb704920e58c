//! The stub: one page of code at a fixed address, for syscalls that we inject.
//!
//! A task that runs a call for us (a detour, a capture, a rebuild) runs it from this
//! page, and the interception filter lets calls from this page by. The address lies
//! where no program, library, stack, heap or sanitizer shadow is placed, so that it
//! is free in every program and the filter can hold it as a constant.
//!
//! ```text
//! ADDR          code, r-x:  SINGLE: syscall; int3
//!                           BATCH:  for each entry in [r12], r13 of them: syscall; int3
//! ADDR + PAGE   scratch, rw-: entries and what their pointers point at
//! ADDR + LEN
//! ```
//!
//! The page is no secret and no security boundary: the mask is tested first.

use std::{arch::global_asm, ffi::c_void, io};

use crate::sys;

/// Where the stub begins.
pub const ADDR: u64 = 0x6ffe_0000_0000;
/// Size of a page, in bytes; the code occupies one.
pub const PAGE: u64 = 4096;
/// Size of the whole area, code and scratch, in bytes.
pub const LEN: u64 = 2 << 20;
/// First address of the scratch area.
pub const SCRATCH: u64 = ADDR + PAGE;
/// Size of the scratch area, in bytes.
pub const SCRATCH_LEN: u64 = LEN - PAGE;
/// Address of `syscall; int3`.
pub const SINGLE: u64 = ADDR;
/// Address of the batch loop.
pub const BATCH: u64 = ADDR + 16;

/// Size of one batch entry, in bytes: `{u32 nr, u32 flags, u64 args[6], u64 ret}`.
pub const ENTRY: usize = 64;
/// Entry flag: stop the batch here when the call fails.
pub const MUST_SUCCEED: u32 = 1;

global_asm!(
    ".pushsection .rodata",
    ".balign 16",
    ".globl pod_stub_start",
    ".globl pod_stub_end",
    "pod_stub_start:",
    "    syscall",
    "    int3",
    ".balign 16, 0xcc",
    "2:  mov eax, dword ptr [r12]",
    "    mov rdi, [r12 + 8]",
    "    mov rsi, [r12 + 16]",
    "    mov rdx, [r12 + 24]",
    "    mov r10, [r12 + 32]",
    "    mov r8,  [r12 + 40]",
    "    mov r9,  [r12 + 48]",
    "    syscall",
    "    mov [r12 + 56], rax",
    "    test dword ptr [r12 + 4], 1",
    "    jz 3f",
    "    cmp rax, -4095",
    "    jae 4f",
    "3:  add r12, 64",
    "    dec r13",
    "    jnz 2b",
    "4:  int3",
    "pod_stub_end:",
    ".popsection",
);

unsafe extern "C" {
    static pod_stub_start: u8;
    static pod_stub_end: u8;
}

/// The code of the page, to be copied to [`ADDR`].
#[must_use]
pub fn code() -> &'static [u8] {
    let (start, end) = (&raw const pod_stub_start, &raw const pod_stub_end);
    // SAFETY: both symbols are defined above around one contiguous read-only block.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// Maps the stub into the calling process, so that its forks have it too.
///
/// # Errors
/// `EEXIST` when something lies there already; otherwise what `mmap` or `mprotect` said.
pub fn map_here() -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: MAP_FIXED_NOREPLACE takes a free range or fails; nothing of ours is replaced.
    let at = unsafe { libc::mmap(ADDR as *mut c_void, LEN as usize, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the area was mapped writable just now and is larger than the code.
    unsafe { std::ptr::copy_nonoverlapping(code().as_ptr(), at.cast(), code().len()) };
    // SAFETY: the first page of the area that was mapped just now; no Rust object lives there.
    let r = unsafe { libc::mprotect(at, PAGE as usize, libc::PROT_READ | libc::PROT_EXEC) };
    sys::check(i64::from(r)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_is_a_syscall_and_batch_starts_where_it_says() {
        assert_eq!(&code()[..3], &[0x0f, 0x05, 0xcc]);
        assert_eq!(
            &code()[(BATCH - ADDR) as usize..][..4],
            &[0x41, 0x8b, 0x04, 0x24]
        );
        assert!(code().len() < PAGE as usize);
    }
}
