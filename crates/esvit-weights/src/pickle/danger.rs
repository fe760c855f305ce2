//! Functions that only an attack would call.

/// Modules of which nothing may be called. Matched exactly: a project may have a package `code`.
const MODULES: &[&str] = &[
    "_io",
    "_operator",
    "_pickle",
    "_posixsubprocess",
    "bdb",
    "cProfile",
    "code",
    "codeop",
    "commands",
    "ftplib",
    "imaplib",
    "io",
    "marshal",
    "nt",
    "ntpath",
    "operator",
    "pdb",
    "pickle",
    "pkgutil",
    "platform",
    "popen2",
    "poplib",
    "posix",
    "posixpath",
    "profile",
    "pty",
    "runpy",
    "shutil",
    "signal",
    "site",
    "smtplib",
    "socket",
    "socketserver",
    "subprocess",
    "sys",
    "telnetlib",
    "tempfile",
    "threading",
    "timeit",
    "trace",
    "urllib2",
    "webbrowser",
    "zipimport",
];

/// Packages of which nothing may be called, in any module.
const PACKAGES: &[&str] = &[
    "asyncio",
    "ctypes",
    "dill",
    "http",
    "importlib",
    "multiprocessing",
    "os",
    "pip",
    "pydoc",
    "requests",
    "urllib",
    "venv",
];

/// Functions of builtins, which also have harmless ones.
const FUNCTIONS: &[&str] = &[
    "apply",
    "breakpoint",
    "compile",
    "delattr",
    "eval",
    "exec",
    "execfile",
    "exit",
    "file",
    "getattr",
    "globals",
    "help",
    "input",
    "locals",
    "open",
    "quit",
    "raw_input",
    "reload",
    "setattr",
    "vars",
    "__import__",
    "__build_class__",
];

/// Whether a call of the function could affect the machine.
pub(crate) fn is_dangerous(module: &str, name: &str) -> bool {
    let package = module.split('.').next().unwrap_or(module);
    if matches!(module, "builtins" | "__builtin__" | "__builtins__") {
        // `open.__call__` is `open`.
        return FUNCTIONS.contains(&name.split('.').next().unwrap_or(name));
    }
    MODULES.contains(&module)
        || PACKAGES.contains(&package)
        || matches!((module, name), ("torch" | "torch.serialization", "load"))
        || matches!(module, "torch.hub" | "numpy.testing._private.utils")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attacks_are_told_from_classes() {
        for (module, name) in
            [("os", "system"), ("os.path", "join"), ("posix", "system"), ("builtins", "eval")]
        {
            assert!(is_dangerous(module, name), "{module}.{name}");
        }
        for (module, name) in [
            ("builtins", "set"),
            ("argparse", "Namespace"),
            ("osprey", "system"),
            ("code.model", "Swin"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("pathlib", "PosixPath"),
        ] {
            assert!(!is_dangerous(module, name), "{module}.{name}");
        }
    }

    #[test]
    fn every_known_way_out_is_an_attack() {
        for module in [
            "code",
            "commands",
            "ftplib",
            "importlib",
            "importlib.util",
            "io",
            "marshal",
            "nt",
            "operator",
            "os",
            "os.path",
            "pdb",
            "pickle",
            "pip._internal",
            "platform",
            "popen2",
            "posix",
            "pty",
            "requests.api",
            "runpy",
            "shutil",
            "socket",
            "subprocess",
            "sys",
            "tempfile",
            "threading",
            "timeit",
            "torch.hub",
            "urllib.request",
            "urllib2",
            "webbrowser",
            "zipimport",
            "ctypes.util",
            "multiprocessing.util",
            "asyncio.subprocess",
            "numpy.testing._private.utils",
            "dill",
            "http.client",
            "pydoc",
            "venv",
            "_posixsubprocess",
        ] {
            assert!(is_dangerous(module, "anything"), "{module}");
        }
        for name in ["open.__call__", "eval", "exec", "compile", "getattr.x", "__import__", "input"]
        {
            assert!(is_dangerous("builtins", name) && is_dangerous("__builtin__", name), "{name}");
        }
        assert!(is_dangerous("torch", "load") && is_dangerous("torch.serialization", "load"));
        assert!(!is_dangerous("torch", "save") && !is_dangerous("numpy", "load"));
    }
}
