"""Stage settings: checks all settings and writes those of the attacks to one file."""

from common import ProfileOption, Workspace, script


def settings(profile: ProfileOption = None) -> None:
    """Write data/<profile>/attacks.json and profile.json, which stages depend on in the place of
    the settings: dvc.lock would repeat those for every stage."""
    from advprune.attacks.registry import attacks_of
    from advprune.attacks.zoo import check_attack
    from advprune.core.files import write_json
    from advprune.pruning import check_settings
    from advprune.studies import check_studies

    workspace = Workspace.open(profile)
    attacks_of(workspace.profile)
    check_settings(workspace.params)
    check_studies(workspace.params)
    for extra in workspace.params.attack.extra:
        check_attack(extra.name, extra.arguments())
    write_json(workspace.place("data", "attacks.json"), workspace.attacks)
    profile_json = workspace.profile.model_dump(mode="json")
    write_json(workspace.place("data", "profile.json"), profile_json)


if __name__ == "__main__":
    script(settings)
