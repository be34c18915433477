//! What processes are started from: a file that stays what it is when another
//! one is put at its path.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Access, OFlags, access};
use serde::{Deserialize, Serialize};
use tracing::warn;

/// The program that runs now, even if the file at its path is another by now.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// A program to start processes from.
#[derive(Debug)]
pub(crate) struct Program {
    /// What it is started as.
    executable: PathBuf,
    /// `None`: what the orchestrator itself runs.
    held: Option<Held>,
}

/// A file that stays open, so that it is there as long as it may be started.
#[derive(Debug)]
struct Held {
    named: Named,
    _file: File,
}

/// A program as the state file names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Named {
    /// Where it was when it was named.
    pub(crate) path: PathBuf,
    /// Tells it from another file that is there later.
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl Program {
    /// What the orchestrator itself runs.
    pub(crate) fn own() -> Self {
        Self {
            executable: OWN_PROGRAM.into(),
            held: None,
        }
    }

    /// The program that is at `path` now, which is absolute.
    ///
    /// # Errors
    ///
    /// When there is none, or it may not be run.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        access(path, Access::EXEC_OK)?;
        let flags = i32::try_from(OFlags::PATH.bits()).unwrap_or_default();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        // Not through `self`: the interpreter of a script looks for it, too.
        let pid = std::process::id();
        let executable = format!("/proc/{pid}/fd/{}", file.as_raw_fd());
        Ok(Self {
            executable: executable.into(),
            held: Some(Held {
                named: Named {
                    path: path.into(),
                    device: metadata.dev(),
                    inode: metadata.ino(),
                },
                _file: file,
            }),
        })
    }

    /// What the process with this pid was started from.
    ///
    /// # Errors
    ///
    /// When it is gone, or another user's.
    pub(crate) fn of_process(pid: u32) -> io::Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/exe")))
    }

    /// The program that an earlier orchestrator named: the file at its path if
    /// that is still the same, else what one of these processes runs, else what is
    /// at its path now, else what this orchestrator runs.
    pub(crate) fn find(named: &Named, pids: impl IntoIterator<Item = u32>) -> Self {
        let at_path = Self::open(&named.path);
        if let Ok(program) = &at_path
            && program.is(named)
        {
            return at_path.unwrap_or_else(|_| Self::own());
        }
        let running = pids
            .into_iter()
            .filter_map(|pid| Self::of_process(pid).ok());
        if let Some(mut program) = running.into_iter().find(|program| program.is(named)) {
            if let Some(held) = &mut program.held {
                held.named.path.clone_from(&named.path);
            }
            return program;
        }
        let path = named.path.display();
        match at_path {
            Ok(program) => {
                warn!(program = %path, "The program that nodes are started from is another file now.");
                program
            }
            Err(error) => {
                warn!(
                    program = %path,
                    %error,
                    "The program that nodes were started from is gone: starting them from this one."
                );
                Self::own()
            }
        }
    }

    /// What to start.
    pub(crate) fn executable(&self) -> &Path {
        &self.executable
    }

    /// What to execute in this very process, after which nothing of it is open: a
    /// script's interpreter would not find it.
    pub(crate) fn executable_here(&self) -> &Path {
        let at_path = self.named().filter(|named| {
            let metadata = std::fs::metadata(&named.path);
            metadata.is_ok_and(|file| (file.dev(), file.ino()) == (named.device, named.inode))
        });
        at_path.map_or(&self.executable, |named| &named.path)
    }

    /// As the state file names it; `None`: what the orchestrator itself runs.
    pub(crate) fn named(&self) -> Option<&Named> {
        self.held.as_ref().map(|held| &held.named)
    }

    /// For people.
    pub(crate) fn path(&self) -> &Path {
        self.named().map_or(&self.executable, |named| &named.path)
    }

    fn is(&self, named: &Named) -> bool {
        self.named()
            .is_some_and(|own| (own.device, own.inode) == (named.device, named.inode))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

    use super::*;

    fn script(path: &Path, word: &str) {
        fs::write(path, format!("#!/bin/sh\necho {word}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }

    fn says(program: &Program) -> String {
        let output = Command::new(program.executable()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_program_stays_what_it_was_when_its_file_is_replaced_or_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        script(&path, "one");
        let one = Program::open(&path).unwrap();
        let named = one.named().unwrap().clone();
        assert_eq!(named.path, path);
        script(&dir.path().join("other"), "two");
        fs::rename(dir.path().join("other"), &path).unwrap();
        assert_eq!(says(&one), "one\n");
        assert_eq!(says(&Program::open(&path).unwrap()), "two\n");
        fs::remove_file(&path).unwrap();
        assert_eq!(says(&one), "one\n");
        assert_eq!(one.path(), path);
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Program::open(&dir.path().join("none")).is_err());
        assert!(Program::open(dir.path()).is_err());
        let text = dir.path().join("text");
        fs::write(&text, "hello").unwrap();
        assert!(Program::open(&text).is_err());
    }

    #[test]
    fn an_earlier_orchestrators_program_is_found_by_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        fs::copy("/bin/sleep", &path).unwrap();
        let mut child = Command::new(&path).arg("60").spawn().unwrap();
        let named = Program::open(&path).unwrap().named().unwrap().clone();
        let found = Program::find(&named, []);
        assert_eq!(found.named(), Some(&named));
        // Another file is at its path, but a process runs it.
        script(&dir.path().join("other"), "two");
        fs::rename(dir.path().join("other"), &path).unwrap();
        let found = Program::find(&named, [child.id()]);
        assert_eq!(found.named(), Some(&named));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = Program::find(&named, [child.id()]);
        assert_eq!(says(&found), "two\n", "there is nothing better");
        fs::remove_file(&path).unwrap();
        assert_eq!(Program::find(&named, []).named(), None);
    }
}
