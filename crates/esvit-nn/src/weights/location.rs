//! Where the networks of a file are, what they are called, and which one is meant.

use esvit_weights::{TensorInfo, WeightsFile};

use super::method::{Member, Method};
use super::naming::Naming;
use crate::backbone::Family;

/// A network in a file: its family, where its tensors are, and their naming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Its family.
    pub family: Family,
    /// How they are named.
    pub naming: Naming,
    /// The dictionary that holds the tensors, as in [`TensorInfo::group`].
    pub group: String,
    /// Prefix of all names.
    pub prefix: String,
    /// The self-supervised method that trained it, if names of a program tell.
    pub method: Option<Method>,
    /// Its place among the networks that the method trains.
    pub(super) member: Option<Member>,
    /// The network's name among those of its file.
    name: String,
}

/// The part that a network has in self-supervised training, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkRole {
    /// The network that is trained.
    Student,
    /// The mean of the student's weights.
    Teacher,
}

impl Location {
    /// The only network of a file.
    pub(super) fn new(family: Family, naming: Naming, group: &str, prefix: &str) -> Self {
        let (group, prefix) = (group.to_owned(), prefix.to_owned());
        let (method, member, name) = (None, None, String::new());
        let mut location = Self { family, naming, group, prefix, method, member, name };
        location.name = location.parts().first().copied().unwrap_or_default().to_owned();
        location
    }

    /// The same place under another naming.
    pub(super) fn with_naming(self, naming: Naming) -> Self {
        Self { naming, ..self }
    }

    /// Its name: the first part of its path that no other network of the file has, or else the path.
    /// Empty for the only network of a plain dictionary of tensors.
    pub fn network(&self) -> &str {
        &self.name
    }

    /// Names of the tensors, after the prefix, that hold the parameter with this official name.
    pub(super) fn names(&self, official: &str) -> Vec<String> {
        self.naming.names(self.family, official)
    }

    /// `eps` of the normalization layers, by the program that names its parameters so.
    pub fn norm_eps(&self) -> f64 {
        self.naming.norm_eps(self.family)
    }

    /// Its dictionary and prefix, such as `state_dict/teacher_backbone` or `student/module.backbone`.
    pub fn path(&self) -> String {
        let prefix = self.prefix.strip_suffix('.').unwrap_or(&self.prefix);
        let is_both = !self.group.is_empty() && !prefix.is_empty();
        format!("{}{}{prefix}", self.group, if is_both { "/" } else { "" })
    }

    /// Whether it is called a student or a teacher, as in `teacher`, `student.backbone` or
    /// `teacher_backbone`.
    pub fn role(&self) -> Option<NetworkRole> {
        let parts = self.parts();
        let has = |word| parts.iter().any(|part| part.split('_').any(|found| found == word));
        match (has("student"), has("teacher")) {
            (true, false) => Some(NetworkRole::Student),
            (false, true) => Some(NetworkRole::Teacher),
            _ => None,
        }
    }

    /// The part that it has in training, by its name or by what the method's program calls its two
    /// networks.
    pub fn training_role(&self) -> Option<NetworkRole> {
        let of_method = |member: Member| match member.is_momentum {
            true => NetworkRole::Teacher,
            false => NetworkRole::Student,
        };
        self.role().or_else(|| self.member.filter(Member::is_one_of_two).map(of_method))
    }

    /// Whether it is the one that the evaluation of its method takes, of those that the method trains.
    fn is_evaluated(&self) -> bool {
        self.member.is_some_and(|member| !member.is_momentum)
    }

    fn parts(&self) -> Vec<&str> {
        parts(&self.group).chain(parts(&self.prefix)).collect()
    }

    /// Prefixes of heads: inside the backbone in the official code, beside it in DINO's. The second
    /// is that of the whole network.
    pub(super) fn head_prefixes(&self) -> [&str; 2] {
        let above = self.prefix.strip_suffix("backbone.");
        let above = above.filter(|above| above.is_empty() || above.ends_with('.'));
        [&self.prefix, above.unwrap_or(&self.prefix)]
    }

    /// The tensor called `prefix` + `name`.
    pub(super) fn find<'a>(&self, file: &'a WeightsFile, name: &str) -> Option<&'a TensorInfo> {
        file.find(&self.group, &format!("{}{name}", self.prefix))
    }
}

/// The parts of a path.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split(['/', '.']).filter(|part| !part.is_empty())
}

/// Names the networks of a file.
pub(super) fn name(networks: &mut [Location]) {
    if networks.len() < 2 {
        return;
    }
    let names: Vec<String> = (0..networks.len())
        .map(|at| {
            let is_own = |part: &&str| {
                let mut others = networks.iter().enumerate().filter(|(other, _)| *other != at);
                others.all(|(_, other)| !other.parts().contains(part))
            };
            let own = networks[at].parts().into_iter().find(is_own);
            own.map_or_else(|| networks[at].path(), str::to_owned)
        })
        .collect();
    networks.iter_mut().zip(names).for_each(|(network, name)| network.name = name);
}

/// The networks that `key` may mean, by its name, its path or any parts of that which follow each
/// other; without a key the teacher, or else the one that the evaluation of its method takes, or else
/// all.
pub(super) fn chosen<'a>(networks: &'a [Location], key: Option<&str>) -> Vec<&'a Location> {
    let those = |is_meant: &dyn Fn(&Location) -> bool| -> Vec<&'a Location> {
        networks.iter().filter(|at| is_meant(at)).collect()
    };
    let teacher = |at: &Location| at.role() == Some(NetworkRole::Teacher);
    let Some(key) = key else {
        let ways: [&dyn Fn(&Location) -> bool; 3] = [&teacher, &Location::is_evaluated, &|_| true];
        return ways.into_iter().map(those).find(|found| !found.is_empty()).unwrap_or_default();
    };
    let wanted: Vec<&str> = parts(key).collect();
    let has = |at: &Location| {
        !wanted.is_empty() && at.parts().windows(wanted.len()).any(|part| part == wanted)
    };
    let is_role = |at: &Location| match key {
        "student" => at.role() == Some(NetworkRole::Student),
        "teacher" => teacher(at),
        _ => false,
    };
    // A single network without the name of a role is found under any key.
    let is_nameless = matches!(networks, [at] if at.group.is_empty() && at.role().is_none());
    let ways: [&dyn Fn(&Location) -> bool; 5] =
        [&|at| at.name == key, &|at| at.parts() == wanted, &has, &is_role, &|_| is_nameless];
    ways.into_iter().map(those).find(|found| !found.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Locations of these groups and prefixes, named.
    fn networks(places: &[(&str, &str)]) -> Vec<Location> {
        let place = |(group, prefix): &(&str, &str)| {
            Location::new(Family::Swin, Naming::Esvit, group, prefix)
        };
        let mut networks: Vec<Location> = places.iter().map(place).collect();
        name(&mut networks);
        networks
    }

    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], Option<usize>);

    /// Layouts of self-supervised programs: their networks' names, and the one that is preferred.
    const LAYOUTS: [Case<'_>; 10] = [
        (
            &[("state_dict", "student_backbone."), ("state_dict", "teacher_backbone.")],
            &["student_backbone", "teacher_backbone"],
            Some(1),
        ),
        (&[("model", "encoder."), ("model", "encoder_k.")], &["encoder", "encoder_k"], None),
        (
            &[("state_dict", "backbone."), ("state_dict", "momentum_backbone.")],
            &["backbone", "momentum_backbone"],
            None,
        ),
        (
            &[("model", "student.backbone."), ("model", "teacher.backbone.")],
            &["student", "teacher"],
            Some(1),
        ),
        (
            &[("student", "module.backbone."), ("teacher", "backbone.")],
            &["student", "teacher"],
            Some(1),
        ),
        (&[("state_dict", ""), ("state_dict_ema", "")], &["state_dict", "state_dict_ema"], None),
        (&[("model", ""), ("ema/model", "")], &["model", "ema"], None),
        (&[("", ""), ("", "ema.")], &["", "ema"], None),
        (&[("a", "backbone."), ("a", "momentum.backbone.")], &["a/backbone", "momentum"], None),
        (&[("", "swin.")], &["swin"], Some(0)),
    ];

    #[test]
    fn networks_have_names_that_choose_them() {
        for (places, names, preferred) in LAYOUTS {
            let all = networks(places);
            let found: Vec<&str> = all.iter().map(Location::network).collect();
            assert_eq!(found, names);
            let only = |key: Option<&str>| match chosen(&all, key)[..] {
                [one] => all.iter().position(|at| at == one),
                _ => None,
            };
            assert_eq!(only(None), preferred, "{names:?}");
            for (at, network) in all.iter().enumerate() {
                assert_eq!(only(Some(network.network())), Some(at), "{names:?}");
                assert_eq!(only(Some(&network.path())), Some(at), "{names:?}");
                let dotted = network.path().replace('/', ".");
                assert_eq!(only(Some(&dotted)), Some(at), "{names:?}");
            }
            let others = all.len() > 1;
            assert_eq!(chosen(&all, Some("neither")).is_empty(), others, "{names:?}");
        }
    }

    #[test]
    fn any_part_of_its_own_chooses_a_network() {
        let all = networks(&[("model", "student.backbone."), ("model", "teacher.backbone.")]);
        for (key, expected) in
            [("student.backbone", 1), ("model/teacher", 1), ("backbone", 2), ("back", 0)]
        {
            assert_eq!(chosen(&all, Some(key)).len(), expected, "{key}");
        }
        let all = networks(&[("s", "student_backbone."), ("s", "teacher_backbone.")]);
        assert_eq!(chosen(&all, Some("student")), [&all[0]]);
        assert_eq!(chosen(&all, Some("teacher")), [&all[1]]);
    }

    #[test]
    fn heads_are_looked_for_beside_a_backbone() {
        for (prefix, above) in [
            ("backbone.", ""),
            ("module.backbone.", "module."),
            ("student_backbone.", "student_backbone."),
            ("encoder.", "encoder."),
        ] {
            let location = Location::new(Family::Swin, Naming::Esvit, "", prefix);
            assert_eq!(location.head_prefixes(), [prefix, above]);
        }
    }
}
