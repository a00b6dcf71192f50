//! Debian's kernel packages: found by apt, downloaded and unpacked into the target directory, never installed.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, bail};

use crate::command;
use crate::kernel::tool;

/// The first numbers of a kernel's version, such as `6.1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Series(String);

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_number = |part: &str| part.parse::<u16>().is_ok();
        let parts = text.split('.').collect::<Vec<_>>();
        if parts.len() < 2 || !parts.into_iter().all(is_number) {
            return Err(
                "a kernel is given by the first numbers of its version, such as 6.1".into(),
            );
        }
        Ok(Self(text.to_owned()))
    }
}

impl Series {
    fn contains(&self, release: &str) -> bool {
        release
            .strip_prefix(&self.0)
            .is_some_and(|rest| rest.starts_with(['.', '+', '-']))
    }
}

/// An unpacked kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// What `uname -r` says there, such as `6.1.0-56-amd64`.
    pub(crate) release: String,
    /// The folder that holds `boot` and `lib/modules`.
    root: PathBuf,
}

impl Kernel {
    pub(crate) fn image(&self) -> PathBuf {
        self.root
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    /// The folder that is `/lib/modules` elsewhere.
    pub(crate) fn modules(&self) -> PathBuf {
        self.module_root().join("lib/modules")
    }

    /// The files of `modules` and of what they depend on, in the order in which they are loaded; those that are built
    /// into the kernel have none.
    pub(crate) fn module_files(&self, modules: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for module in modules {
            let mut modprobe = tool("modprobe");
            modprobe
                .args([
                    "--show-depends",
                    "--set-version",
                    &self.release,
                    "--dirname",
                ])
                .arg(self.module_root())
                .arg(module);
            let listed = command::output(&mut modprobe)
                .with_context(|| format!("Linux {} has no module {module}", self.release))?;
            for file in inserted(&listed) {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }

    fn at(release: &str, folder: &Path) -> Self {
        Self {
            release: release.to_owned(),
            root: folder.join(release),
        }
    }

    /// Packages that do without the links from `/lib` into `/usr` have everything there.
    fn module_root(&self) -> PathBuf {
        let merged = self.root.join("usr");
        if merged.join("lib/modules").is_dir() {
            return merged;
        }
        self.root.clone()
    }
}

/// The newest kernel of the series that `folder` holds; when it holds none, the newest that apt offers, downloaded.
pub(crate) fn ensure(series: &Series, folder: &Path) -> anyhow::Result<Kernel> {
    if !cfg!(target_arch = "x86_64") {
        bail!("other kernels can be tried on x86-64 only");
    }
    if let Some(release) = newest(series, downloaded(folder)) {
        return Ok(Kernel::at(&release, folder));
    }
    let work = Work::begin(folder)?;
    let package_of = |release: &str| format!("{PREFIX}{release}");
    let version = series.0.replace('.', "[.]");
    let first = newest(series, offered(&version)?);
    let known = first.and_then(|it| Some((work.download(&package_of(&it)).ok()?, it)));
    let (archive, release) = if let Some(found) = known {
        found
    } else {
        update()?;
        let release = newest(series, offered(&version)?).with_context(|| unknown(series))?;
        (work.download(&package_of(&release))?, release)
    };
    let unpacked = work.unpack(&archive)?;
    let unpacked_kernel = Kernel {
        release: release.clone(),
        root: unpacked.clone(),
    };
    let modules = unpacked_kernel.module_root();
    command::run(tool("depmod").arg("--basedir").arg(modules).arg(&release))?;
    let kernel = Kernel::at(&release, folder);
    work.end(&unpacked, &kernel.root)?;
    Ok(kernel)
}

/// A busybox that needs no libraries. Its package is not installed, because it would have to replace the ordinary one.
pub(crate) fn busybox(folder: &Path) -> anyhow::Result<PathBuf> {
    const PACKAGE: &str = "busybox-static";
    let place = folder.join(PACKAGE);
    let find = || {
        // Newer packages have no files in /bin.
        let files = ["bin/busybox", "usr/bin/busybox"].map(|file| place.join(file));
        files.into_iter().find(|file| file.is_file())
    };
    if let Some(found) = find() {
        return Ok(found);
    }
    let work = Work::begin(folder)?;
    let archive = work.download(PACKAGE).or_else(|_| {
        update()?;
        work.download(PACKAGE)
    })?;
    let unpacked = work.unpack(&archive)?;
    work.end(&unpacked, &place)?;
    find().with_context(|| format!("{PACKAGE} has no busybox"))
}

/// The lists may be missing, or name a package that a newer one has replaced.
fn update() -> anyhow::Result<()> {
    command::run(command::as_root("apt-get").args(["update", "--quiet"]))
}

/// What to say of a series that apt does not offer.
fn unknown(series: &Series) -> String {
    let releases = offered("[0-9]").unwrap_or_default();
    let all: BTreeSet<_> = releases
        .iter()
        .filter_map(|release| match numbers(release).as_slice() {
            [major, minor, ..] => Some((*major, *minor)),
            _ => None,
        })
        .collect();
    let all: Vec<_> = all
        .iter()
        .map(|(major, minor)| format!("{major}.{minor}"))
        .collect();
    if all.is_empty() {
        return "apt offers no kernels; its sources should have Debian's main".to_owned();
    }
    format!(
        "apt offers no kernel of the series {}, but {}",
        series.0,
        all.join(", ")
    )
}

/// Where a package is downloaded and unpacked before it is put into its place.
struct Work(PathBuf);

impl Work {
    fn begin(folder: &Path) -> anyhow::Result<Self> {
        let work = folder.join("download");
        // What an interrupted download left.
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        Ok(Self(work))
    }

    fn download(&self, package: &str) -> anyhow::Result<PathBuf> {
        let Self(work) = self;
        let mut apt = Command::new("apt-get");
        apt.current_dir(work).args(["download", "--quiet", package]);
        if command::is_root() {
            // Otherwise apt complains that its own user cannot write here.
            apt.args(["--option", "APT::Sandbox::User=root"]);
        }
        command::run(&mut apt)?;
        fs::read_dir(work)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt downloaded no {package}"))
    }

    fn unpack(&self, archive: &Path) -> anyhow::Result<PathBuf> {
        let Self(work) = self;
        let unpacked = work.join("unpacked");
        let mut dpkg = Command::new("dpkg-deb");
        command::run(dpkg.arg("--extract").arg(archive).arg(&unpacked))?;
        Ok(unpacked)
    }

    fn end(self, unpacked: &Path, place: &Path) -> anyhow::Result<()> {
        let Self(work) = self;
        fs::rename(unpacked, place)
            .with_context(|| format!("cannot move {} into place", unpacked.display()))?;
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
    }
}

fn downloaded(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|release| Kernel::at(release, folder).image().is_file())
        .collect()
}

/// The releases that apt offers whose version begins as a regular expression says.
fn offered(version: &str) -> anyhow::Result<Vec<String>> {
    let pattern = format!("^{PREFIX}{version}.*{SUFFIX}$");
    let names =
        command::output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    Ok(releases(&names))
}

/// The releases of the ordinary kernels among the packages that `apt-cache search` lists. Those for clouds lack the file
/// system by which a machine sees this one's files.
fn releases(listed: &str) -> Vec<String> {
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| name.strip_prefix(PREFIX))
        .filter(|release| release.ends_with(SUFFIX))
        .filter(|release| {
            !["-cloud-", "-rt-"]
                .iter()
                .any(|kind| release.contains(kind))
        })
        // A name without a release of its own is that of a package which depends on the newest.
        .filter(|release| numbers(release).len() > 2)
        .map(str::to_owned)
        .collect()
}

fn newest(series: &Series, releases: Vec<String>) -> Option<String> {
    releases
        .into_iter()
        .filter(|release| series.contains(release))
        .min_by_key(|release| Reverse(numbers(release)))
}

fn numbers(release: &str) -> Vec<u64> {
    release
        .trim_end_matches(SUFFIX)
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// The files that `modprobe --show-depends` would insert.
fn inserted(listed: &str) -> Vec<PathBuf> {
    listed
        .lines()
        .filter_map(|line| line.strip_prefix("insmod "))
        .filter_map(|rest| rest.split_whitespace().next())
        .map(PathBuf::from)
        .collect()
}

const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-amd64";

#[cfg(test)]
mod tests {
    use super::*;

    fn series(text: &str) -> Series {
        text.parse().unwrap()
    }

    #[test]
    fn the_newest_kernel_is_the_one_with_the_greatest_numbers() {
        let listed = "linux-image-6.1.0-9-amd64 - Linux 6.1 for 64-bit PCs (signed)\n\
                      linux-image-6.1.0-56-amd64 - Linux 6.1 for 64-bit PCs (signed)\n\
                      linux-image-6.1.0-57-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)\n\
                      linux-image-6.1.0-58-rt-amd64 - Linux 6.1 for 64-bit PCs, PREEMPT_RT (signed)\n";

        let newest = newest(&series("6.1"), releases(listed));

        assert_eq!(newest.as_deref(), Some("6.1.0-56-amd64"));
    }

    #[test]
    fn a_series_is_not_another_that_begins_with_it() {
        let releases = ["6.12.117+deb12-amd64", "6.1.0-56-amd64"].map(str::to_owned);

        assert_eq!(
            newest(&series("6.1"), releases.to_vec()).as_deref(),
            Some("6.1.0-56-amd64")
        );
        assert_eq!(
            newest(&series("6.12"), releases.to_vec()).as_deref(),
            Some("6.12.117+deb12-amd64")
        );
    }

    #[test]
    fn packages_that_only_depend_on_a_kernel_are_none() {
        let listed = "linux-image-6.12-amd64 - Linux for 64-bit PCs (meta-package)\n";

        assert_eq!(releases(listed), Vec::<String>::new());
    }

    #[test]
    fn a_series_has_at_least_two_numbers() {
        for text in ["", "6", "6.", "six.one", "6.1-rc1"] {
            assert!(text.parse::<Series>().is_err(), "{text}");
        }
    }

    #[test]
    fn modules_are_those_that_modprobe_would_insert() {
        let listed = "builtin virtio_pci\ninsmod /k/netfs.ko.xz \ninsmod /k/9p.ko.xz option=1\n";

        assert_eq!(
            inserted(listed),
            [Path::new("/k/netfs.ko.xz"), Path::new("/k/9p.ko.xz")]
        );
    }
}
