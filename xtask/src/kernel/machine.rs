//! One virtual machine, watched: what the tests print, their exit code, and what the kernel said when there is none.

use std::fs;
use std::io::{Read as _, Write as _, stdout};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::kernel::package::Kernel;
use crate::results::Results;

/// How long a machine may print nothing before it counts as hung: the kernel until the tests begin, and the tests from then
/// on, because a kernel that is stuck may complain for ever. The test runner prints at the end of a test and after its
/// first minute.
const SILENCE: Duration = Duration::from_mins(10);

/// How many of the console's last lines are shown.
const TAIL: usize = 40;

/// A running machine; it ends with the thread that started it.
#[derive(Debug)]
pub(crate) struct Machine {
    printed: Receiver<Vec<u8>>,
    ended: Receiver<anyhow::Result<()>>,
}

impl Machine {
    /// Boots `kernel` with `image` as its first file system; `scratch` is for the console's log and the exit code.
    pub(crate) fn start(kernel: &Kernel, image: &Path, scratch: &Path) -> anyhow::Result<Self> {
        let console = scratch.join("console.log");
        let code = scratch.join("exit-code");
        for file in [&console, &code] {
            // From the run before; qemu makes them anew.
            let _ = fs::remove_file(file);
        }
        let mut child = qemu(kernel, image, &console, &code)?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run `setpriv`")?;
        let output = child.stdout.take().context("qemu has no standard output")?;
        let (to_printed, printed) = channel();
        let (to_ended, ended) = channel();
        let watch = Watch {
            child,
            console,
            code,
            printed: to_printed,
        };
        thread::spawn(move || {
            // Nobody waits for it when the other end is gone.
            let _ = to_ended.send(watch.until_end(output));
        });
        Ok(Self { printed, ended })
    }

    /// Shows what the tests print, from the beginning, until the machine is off; an error unless all of them passed.
    pub(crate) fn follow(&self, results: &mut Results) -> anyhow::Result<()> {
        let mut out = stdout().lock();
        while let Ok(bytes) = self.printed.recv() {
            results.read_piece(&bytes);
            out.write_all(&bytes)
                .and_then(|()| out.flush())
                .context("cannot print")?;
        }
        self.ended.recv().context("nothing watched the machine")?
    }
}

fn qemu(kernel: &Kernel, image: &Path, console: &Path, code: &Path) -> anyhow::Result<Command> {
    let for_qemu = |path: &Path| {
        let path = path
            .to_str()
            .context("the target directory's path is no UTF-8")?;
        // A comma ends an option's value unless it is doubled.
        anyhow::Ok(path.replace(',', ",,"))
    };
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    // One processor a machine: with more, emulation spends its time on keeping them coherent.
    command.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max"]);
    command.args(["-smp", "1", "-m", "2048", "-no-reboot"]);
    command.arg("-kernel").arg(kernel.image());
    command.arg("-initrd").arg(image);
    command.args(["-append", KERNEL_ARGUMENTS]);
    command.args([
        "-virtfs",
        "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
    ]);
    command.args([
        "-chardev",
        &format!("file,id=console,path={}", for_qemu(console)?),
    ]);
    command.args(["-serial", "chardev:console"]);
    command.args(["-device", "virtio-serial-pci"]);
    command.args(["-chardev", "file,id=tests,path=/dev/stdout"]);
    command.args(["-device", "virtserialport,nr=1,chardev=tests"]);
    command.args([
        "-chardev",
        &format!("file,id=code,path={}", for_qemu(code)?),
    ]);
    command.args(["-device", "virtserialport,nr=2,chardev=code"]);
    Ok(command)
}

/// A panic or an oops ends the machine. The time-stamp counter is left alone: emulated, its frequency is measured wrong
/// on a busy host, and the machine's clock would run several times too fast. Memory is not cleared more than it must be.
/// Every process has its program and libraries at the same addresses, for which the emulator keeps what it has translated;
/// without that, it translates them anew for each, which takes longer than running most.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 oops=panic nowatchdog mitigations=off no_timer_check tsc=unstable \
                                clocksource=hpet random.trust_cpu=on init_on_alloc=0 transparent_hugepage=madvise norandmaps";

struct Watch {
    child: Child,
    console: PathBuf,
    code: PathBuf,
    printed: Sender<Vec<u8>>,
}

impl Watch {
    fn until_end(mut self, output: ChildStdout) -> anyhow::Result<()> {
        let (to_chunks, chunks) = channel();
        thread::spawn(move || read(output, &to_chunks));

        let mut heard = Instant::now();
        let mut console = 0;
        let mut have_begun = false;
        loop {
            match chunks.recv_timeout(Duration::from_secs(1)) {
                Ok(chunk) => {
                    have_begun = true;
                    heard = Instant::now();
                    // Kept running when nobody follows.
                    let _ = self.printed.send(chunk);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let length = fs::metadata(&self.console).map_or(0, |file| file.len());
            if length != console && !have_begun {
                console = length;
                heard = Instant::now();
            }
            if heard.elapsed() > SILENCE {
                self.child.kill().context("cannot end qemu")?;
                self.child.wait().context("cannot wait for qemu")?;
                bail!(
                    "it hangs: nothing was heard of it for {} minutes; the console's last lines:\n{}",
                    SILENCE.as_secs() / 60,
                    self.tail()
                );
            }
        }
        let status = self.child.wait().context("cannot wait for qemu")?;
        let code = fs::read_to_string(&self.code).unwrap_or_default();
        match code.trim() {
            "0" => Ok(()),
            "" => bail!(
                "the machine ended before the tests did ({status}); the console's last lines:\n{}",
                self.tail()
            ),
            code => bail!("tests failed (exit code {code})"),
        }
    }

    fn tail(&self) -> String {
        let console = fs::read(&self.console).unwrap_or_default();
        tail(&String::from_utf8_lossy(&console))
    }
}

fn read(mut output: ChildStdout, chunks: &Sender<Vec<u8>>) {
    let mut buffer = [0; 4096];
    loop {
        let length = match output.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        if chunks.send(buffer[..length].to_vec()).is_err() {
            return;
        }
    }
}

fn tail(console: &str) -> String {
    let lines = console.lines().collect::<Vec<_>>();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_console_is_shown_by_its_end() {
        let console = "one line\r\n".repeat(99) + "the last\r\n";

        let shown = tail(&console);

        assert_eq!(shown.lines().count(), TAIL);
        assert!(shown.ends_with("the last"));
    }

    #[test]
    fn a_short_console_is_shown_whole() {
        assert_eq!(tail("a\nb\n"), "a\nb");
    }
}
