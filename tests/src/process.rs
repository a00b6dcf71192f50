//! Child processes that end with the value that stands for them, and whose output can be waited for.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::starting;
use crate::wait::until;

/// A running child; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Log,
    readers: Vec<JoinHandle<()>>,
}

/// What a child left when it ended.
#[derive(Debug)]
pub struct Exit {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Process {
    /// Starts `command`, collecting what it prints on either stream.
    pub fn spawn(name: &str, mut command: Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = starting::spawn(&mut command)
            .with_context(|| format!("cannot start {name} ({command:?})"))?;
        let log = Log::default();
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(log.follow(stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(log.follow(stderr));
        }
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
            readers,
        })
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        signal::kill(self.raw_pid(), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Waits until the process has ended.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        let status = until(&what, || self.child.try_wait().transpose())??;
        for reader in self.readers.drain(..) {
            // A reader's only way to fail is a panic, which has been reported.
            let _ = reader.join();
        }
        Ok(status)
    }

    /// Sends `signal` and waits for the end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait()
    }

    /// Waits until a line containing `needle` was printed; an error when the process ends before that.
    pub fn wait_for_line(&mut self, needle: &str) -> Result<()> {
        let what = format!("{} prints `{needle}`", self.name);
        until(&what, || {
            if self.log.text().contains(needle) {
                return Some(Ok(()));
            }
            if self.has_ended() {
                return Some(Err(anyhow::anyhow!(
                    "{} ended before it printed `{needle}`:\n{}",
                    self.name,
                    self.log()
                )));
            }
            None
        })?
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What was printed so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end, and kills it when it does not come to one.
pub fn finish(mut command: Command) -> Result<Exit> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child =
        starting::spawn(&mut command).with_context(|| format!("cannot start {command:?}"))?;
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let Ok(status) = until("the command ends", || child.try_wait().transpose()) else {
        child.kill()?;
        child.wait()?;
        bail!(
            "{command:?} did not end; it had printed: {}{}",
            joined(stdout),
            joined(stderr)
        );
    };
    Ok(Exit {
        code: status?.code(),
        stdout: joined(stdout),
        stderr: joined(stderr),
    })
}

/// Runs `command` and gives its standard output; an error with all it said when it fails.
pub(crate) fn output_of(mut command: Command) -> Result<String> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let Output {
        status,
        stdout,
        stderr,
    } = starting::spawn(&mut command)
        .and_then(Child::wait_with_output)
        .with_context(|| format!("cannot run {command:?}"))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!(
            "{command:?} failed ({status}): {stdout}{}",
            String::from_utf8_lossy(&stderr)
        );
    }
    Ok(stdout)
}

fn collect(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is worth showing.
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn joined(reader: Option<JoinHandle<String>>) -> String {
    reader
        .and_then(|reader| reader.join().ok())
        .unwrap_or_default()
}

#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<String>>);

impl Log {
    fn follow(&self, stream: impl Read + Send + 'static) -> JoinHandle<()> {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let mut text = log.0.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&String::from_utf8_lossy(&line));
                text.push('\n');
            }
        })
    }

    fn text(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
