"""Completion of verbs, keys and values by the shell: `eval "$(twoviews completion bash)"`."""

from twoviews.config.schema import VERBS, keys, rule

SHELLS = ("bash", "zsh", "fish")
VIEWS = "list best compare show delete"  # words after `twoviews runs`

_BASH = """_twoviews() {{
  local line="${{COMP_LINE:0:COMP_POINT}}" verb="${{COMP_WORDS[1]}}" current
  current="${{line##* }}"
  if [[ "$line" != *" "*" "* ]]; then
    COMPREPLY=($(compgen -W "{verbs} --help --version" -- "$current"))
    return
  fi
  if [[ "$current" == *=* ]]; then
    case "$verb:${{current%%=*}}" in
{values}
      *) COMPREPLY=($(compgen -f -- "${{current#*=}}")) ;;
    esac
    return
  fi
  case "$verb" in
{keys}
  esac
  [[ "${{COMPREPLY[0]}}" == *= ]] && compopt -o nospace 2>/dev/null
}}
complete -F _twoviews twoviews
"""


def script(shell: str) -> str:
    """Return what the shell has to run once.

    Args:
        shell: one of `SHELLS`.

    Raises:
        ValueError: if it is another one.
    """
    if shell not in SHELLS:
        raise ValueError(f"completion {shell}: expected {' or '.join(SHELLS)}")
    if shell == "fish":
        return _fish()
    named = "\n".join(f'      {verb}) COMPREPLY=($(compgen -W "{_words(verb)}" -- "$current")) ;;' for verb in VERBS)
    values = "\n".join(
        f'      {verb}:{key}) COMPREPLY=($(compgen -W "{" ".join(found)}" -- "${{current#*=}}")) ;;'
        for verb in VERBS
        for key in keys(verb=verb)
        if (found := _values(verb, key))
    )
    text = _BASH.format(verbs=" ".join(VERBS), values=values, keys=named)
    return f"autoload -Uz bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def _words(verb: str) -> str:
    also = f"{VIEWS} " if verb == "runs" else ""
    return also + " ".join(f"{key}=" for key in keys(verb=verb)) + " --help"


def _values(verb: str, key: str) -> list[str]:
    """Return the values that can be listed."""
    own = rule(verb, key)
    if own.type is bool:
        return ["true", "false"]
    return [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in own.choices]


def _fish() -> str:
    lines = [f'complete -c twoviews -f -n __fish_use_subcommand -a "{" ".join(VERBS)}"']
    for verb in VERBS:
        seen = f'-n "__fish_seen_subcommand_from {verb}"'
        lines.append(f'complete -c twoviews {seen} -a "{_words(verb)}"')
        for key in keys(verb=verb):
            if found := _values(verb, key):
                lines.append(f'complete -c twoviews {seen} -a "{" ".join(f"{key}={value}" for value in found)}"')
    return "\n".join(lines) + "\n"
