//! Why the kernel half cannot be loaded, and what would help.

use std::error::Error;
use std::path::Path;
use std::{fmt, io, iter};

use aya::EbpfError;
use aya::programs::ProgramError;
use tracing::debug;

use super::capabilities::Capability;

/// Why the kernel half cannot be loaded, in one line; the verifier's log goes to the daemon's own, at DEBUG.
#[derive(Debug)]
pub(crate) struct LoadError {
    what: String,
    why: String,
    source: Option<io::Error>,
}

impl LoadError {
    /// The object, at `path` where it is not the embedded one, was not taken.
    pub(super) fn object(path: Option<&Path>, error: &EbpfError) -> Self {
        let what = match path {
            Some(path) => format!("cannot load the BPF object {}", path.display()),
            None => "cannot load the BPF programs".to_owned(),
        };
        Self::new(what, error, false, &Capability::missing())
    }

    /// A program of the object was not taken.
    pub(super) fn program(name: &str, path: Option<&Path>, error: &ProgramError) -> Self {
        let what = match path {
            Some(path) => format!("cannot load the BPF program {name} of {}", path.display()),
            None => format!("cannot load the BPF program {name}"),
        };
        let mut was_verified = false;
        if let ProgramError::LoadError { verifier_log, .. } = error {
            debug!(program = name, %verifier_log, "the kernel refused a program");
            was_verified = !verifier_log.to_string().is_empty();
        }
        Self::new(what, error, was_verified, &Capability::missing())
    }

    fn new(
        what: String,
        error: &(dyn Error + 'static),
        was_verified: bool,
        missing: &[Capability],
    ) -> Self {
        let system = chain(error).find_map(|cause| cause.downcast_ref::<io::Error>());
        let errno = system.and_then(io::Error::raw_os_error);
        let why = match errno {
            Some(libc::EPERM | libc::EACCES) if !missing.is_empty() => format!(
                "that takes root, or CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON (missing here: {})",
                list(missing)
            ),
            Some(libc::ENOSYS) => {
                "this kernel has no BPF, which tapping takes; without --interface the daemon does without it".to_owned()
            }
            Some(libc::EPERM) => {
                "bpf(2) is forbidden here though no capability is missing, as in containers and under seccomp filters; \
                 without --interface the daemon does without BPF"
                    .to_owned()
            }
            Some(_) if was_verified || errno == Some(libc::EACCES) => {
                "the kernel's verifier refused it; --log debug shows its reasons, which a report should have".to_owned()
            }
            Some(_) => "the kernel refused it".to_owned(),
            None => flat(error),
        };
        let source = errno.map(io::Error::from_raw_os_error);
        Self { what, why, source }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl Error for LoadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// The error and its causes in one line, without those that another has quoted already.
fn flat(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    for cause in chain(error).map(ToString::to_string) {
        if line.contains(&cause) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&cause);
    }
    line
}

fn list(capabilities: &[Capability]) -> String {
    let names: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_lacks_a_capability_is_told_which() {
        for errno in [libc::EPERM, libc::EACCES] {
            assert_eq!(
                told(errno, true, &[Capability::Bpf, Capability::Perfmon]),
                "cannot load x: that takes root, or CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON (missing here: CAP_BPF, \
                 CAP_PERFMON)"
            );
        }
    }

    #[test]
    fn whoever_lacks_none_is_told_whether_the_verifier_or_the_system_refused() {
        for (errno, was_verified, part) in [
            (libc::EACCES, true, "verifier"),
            (libc::EACCES, false, "verifier"),
            (libc::EINVAL, true, "verifier"),
            (libc::EINVAL, false, "the kernel refused it"),
            (libc::EPERM, false, "bpf(2) is forbidden"),
            (libc::ENOSYS, false, "no BPF"),
        ] {
            let told = told(errno, was_verified, &[]);
            assert!(told.contains(part), "{errno}: {told}");
            assert!(!told.contains("CAP_"), "{errno}: {told}");
        }
    }

    #[test]
    fn what_is_no_object_is_named_and_no_clause_is_repeated() {
        let Err(error) = aya::Ebpf::load(b"#!/bin/sh\n") else {
            panic!("that was no object");
        };
        let told = LoadError::object(Some(Path::new("/x/y.o")), &error).to_string();
        assert!(
            told.starts_with("cannot load the BPF object /x/y.o: error parsing BPF object: "),
            "{told}"
        );
        let mut clauses: Vec<&str> = told.split(": ").collect();
        let all = clauses.len();
        clauses.dedup();
        assert_eq!(clauses.len(), all, "{told}");
    }

    fn told(errno: i32, was_verified: bool, missing: &[Capability]) -> String {
        let error = io::Error::from_raw_os_error(errno);
        LoadError::new("cannot load x".to_owned(), &error, was_verified, missing).to_string()
    }
}
