//! Help, completions and man pages, of every command.

use crate::place::Place;

/// Lines that a screen shows.
const SCREEN: usize = 50;

/// What prints no results, or has commands below it.
const WITHOUT_RESULTS: [&str; 5] = ["", "eval", "data", "completions", "man"];

/// All commands with their help, from the program itself, beginning with "".
fn commands(place: &Place) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut left = vec![String::new()];
    while let Some(command) = left.pop() {
        let help = place.well(&format!("{command} --help")).stdout;
        let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let names = listed.take_while(|line| !line.is_empty());
        let names =
            names.filter_map(|line| line.split_whitespace().next()).filter(|&name| name != "help");
        left.extend(names.map(|name| format!("{command} {name}").trim().to_owned()));
        found.push((command, help));
    }
    found
}

#[test]
fn help_fits_a_screen() {
    let place = Place::new();
    let commands = commands(&place);
    assert!(commands.len() > 25, "{commands:?}");
    for (command, help) in &commands {
        let screens = if command.is_empty() { 2 } else { 1 };
        let lines = help.lines().count();
        assert!(lines <= screens * SCREEN, "`{command}` has {lines} lines of help");
        assert_eq!(place.well(&format!("{command} -h")).stdout, *help);
    }
    // The long form explains values.
    let long = place.well("help eval linear").stdout;
    assert!(long.contains("L2-regularized logistic regression"), "{long}");
}

/// Of a method whose teacher serves training alone it is the student.
#[test]
fn a_key_is_that_of_the_network_that_is_evaluated() {
    let place = Place::new();
    for command in ["eval knn", "embed", "export", "eval transfer", "pretrain"] {
        let help = place.well(&format!("{command} --help")).stdout;
        let words: Vec<&str> = help.split_whitespace().collect();
        let text = words.join(" ");
        let said = "[default: the one that its method evaluates, or the only one";
        assert!(text.contains(said) && !text.contains("[default: the teacher"), "{text}");
    }
    let settings = place.well("config --schema").stdout;
    assert!(settings.contains("`none` for the one that its method evaluates, or the only one"));
}

#[test]
fn every_command_prints_json_if_asked() {
    let place = Place::new();
    for (command, help) in commands(&place) {
        let has_json = help.contains("--json");
        assert_eq!(has_json, !WITHOUT_RESULTS.contains(&command.as_str()), "`{command}`");
    }
}

#[test]
fn shells_complete_commands_and_options() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = place.well(&format!("completions {shell}")).stdout;
        for word in ["pretrain", "neighbors", "batch-size"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        let names = ["swin_tiny_w14", "materials", "supervised", "bf16"];
        let has_names = ["bash", "zsh", "fish"].contains(&shell);
        assert!(!has_names || names.iter().all(|name| script.contains(name)), "{shell}");
    }
    place.run("completions tcsh").expect(2).says(&["tcsh", "bash"]);
}

#[test]
fn every_command_has_a_man_page() {
    let place = Place::new();
    let listed = place.well("man --out pages").stdout;
    for (command, _) in commands(&place) {
        let name = format!("esvit {command}").trim().replace(' ', "-");
        assert!(listed.contains(&format!("{name}.1")), "{listed}");
        let page =
            String::from_utf8(place.files("")[&place.path(&format!("pages/{name}.1"))].clone());
        let page = page.unwrap();
        assert!(page.contains(&format!(".TH {name} 1")) && page.contains(".SH NAME"), "{page}");
    }
    place.run("man --out pages").expect(1).says(&["esvit.1` already exists", "--overwrite"]);
    assert_eq!(place.well("man --out pages --overwrite").stdout, listed);
}
