//! The machine's first file system: busybox, the modules that reach this machine's files, and what is to be run.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::kernel::package::Kernel;

/// What is needed to see the other machine's files and to be heard by it; the rest is loaded from there.
const MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
];

/// Writes the file system to `path`: `kernel` will see `shared` folders at the same place and run `script`. `busybox` is
/// a binary that needs no libraries.
pub(crate) fn write(
    path: &Path,
    kernel: &Kernel,
    busybox: &Path,
    shared: &[PathBuf],
    script: &str,
) -> anyhow::Result<()> {
    let mut archive = Archive::default();
    for folder in [
        "bin", "dev", "host", "memory", "modules", "proc", "root", "sys",
    ] {
        archive.folder(folder);
    }
    let busybox =
        fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.file("bin/busybox", 0o755, &busybox);

    let mut order = String::new();
    for file in kernel.module_files(&MODULES)? {
        let (name, content) = module(&file)?;
        archive.file(&format!("modules/{name}"), 0o644, &content);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    let modules = kernel.modules();
    let modules = modules
        .canonicalize()
        .with_context(|| format!("cannot find {}", modules.display()))?;
    archive.file("modules/folder", 0o644, line(&modules).as_bytes());
    let shared = shared.iter().map(|folder| line(folder)).collect::<String>();
    archive.file("shared", 0o644, shared.as_bytes());
    archive.file("tests", 0o755, script.as_bytes());
    archive.file("finish", 0o755, include_bytes!("finish.sh"));
    archive.file("init", 0o755, include_bytes!("init.sh"));
    fs::write(path, archive.finish()).with_context(|| format!("cannot write {}", path.display()))
}

fn line(path: &Path) -> String {
    format!("{}\n", path.display())
}

/// A module's name with its content as the kernel takes it: not every busybox can decompress.
fn module(file: &Path) -> anyhow::Result<(String, Vec<u8>)> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let Some(plain) = name.strip_suffix(".xz") else {
        let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        return Ok((name.into_owned(), content));
    };
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(file)
        .output()
        .context("cannot run `xz`")?;
    if !output.status.success() {
        bail!("cannot decompress {}", file.display());
    }
    Ok((plain.to_owned(), output.stdout))
}

/// An archive in the format `newc` of cpio, which is what the kernel unpacks
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | mode, content);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (inode, links, length) = (self.entries, 1, content.len());
        let name_size = name.len() + 1;
        // Inode, mode, owner, group, links, time, length, four device numbers, size of the name, checksum.
        let fields = [
            inode as usize,
            mode as usize,
            0,
            0,
            links,
            0,
            length,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            // Writing to a Vec cannot fail.
            let _ = write!(self.bytes, "{field:08x}");
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_headers_names_and_contents_each_padded_to_four_octets() {
        let mut archive = Archive::default();

        archive.file("a/b", 0o644, b"hello");

        let header = "07070100000001000081a40000000000000000000000010000000000000005\
                      0000000000000000000000000000000000000004\
                      00000000";
        let mut expected = header.as_bytes().to_vec();
        expected.extend_from_slice(b"a/b\0\0\0hello\0\0\0");
        assert_eq!(
            archive.bytes.escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
    }

    #[test]
    fn an_archive_ends_with_its_trailer() {
        let bytes = Archive::default().finish();

        assert!(bytes.starts_with(b"070701"));
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
