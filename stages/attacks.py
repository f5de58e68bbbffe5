"""Stage attacks: the attack settings in force, in one file."""

from common import ProfileOption, Workspace, script


def attacks(profile: ProfileOption = None) -> None:
    """Write data/<profile>/attacks.json; an extra attack that does not exist is refused."""
    from advprune.attacks.zoo import check_attack
    from advprune.core.files import write_json

    workspace = Workspace.open(profile)
    for extra in workspace.params.attack.extra:
        check_attack(extra.name, extra.arguments())
    write_json(workspace.place("data", "attacks.json"), workspace.attacks)


if __name__ == "__main__":
    script(attacks)
