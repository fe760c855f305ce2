//! Functions that only an attack would call.

/// Whether a call of the function could affect the machine.
pub(crate) fn is_dangerous(module: &str, name: &str) -> bool {
    let [package, function] = [module, name].map(|path| path.split('.').next().unwrap_or(path));
    match (module, package, function) {
        // Builtins also have harmless functions. `open.__call__` is `open`.
        (
            "builtins" | "__builtin__" | "__builtins__",
            _,
            "apply" | "breakpoint" | "compile" | "delattr" | "eval" | "exec" | "execfile" | "exit"
            | "file" | "getattr" | "globals" | "help" | "input" | "locals" | "open" | "quit"
            | "raw_input" | "reload" | "setattr" | "vars" | "__import__" | "__build_class__",
        ) => true,
        // Modules of which nothing may be called. A project may have a package `code`, so they are
        // matched exactly.
        (
            "_io" | "_operator" | "_pickle" | "_posixsubprocess" | "bdb" | "cProfile" | "code"
            | "codeop" | "commands" | "ftplib" | "imaplib" | "io" | "marshal" | "nt" | "ntpath"
            | "operator" | "pdb" | "pickle" | "pkgutil" | "platform" | "popen2" | "poplib"
            | "posix" | "posixpath" | "profile" | "pty" | "runpy" | "shutil" | "signal" | "site"
            | "smtplib" | "socket" | "socketserver" | "subprocess" | "sys" | "telnetlib"
            | "tempfile" | "threading" | "timeit" | "trace" | "urllib2" | "webbrowser"
            | "zipimport",
            _,
            _,
        ) => true,
        // Packages of which nothing may be called, in any module.
        (
            _,
            "asyncio" | "ctypes" | "dill" | "http" | "importlib" | "multiprocessing" | "os" | "pip"
            | "pydoc" | "requests" | "urllib" | "venv",
            _,
        ) => true,
        ("torch.hub" | "numpy.testing._private.utils", _, _) => true,
        ("torch" | "torch.serialization", _, _) => name == "load",
        _ => false,
    }
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
