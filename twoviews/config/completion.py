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

_ZSH = """(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit }}
_twoviews() {{
  local -a found
  local verb=${{words[2]}} current=${{words[CURRENT]}}
  if (( CURRENT == 2 )); then
    found=({verbs} --help --version)
    compadd -a found
    return
  fi
  if [[ $current == *=* ]]; then
    compset -P '*='
    case "$verb:${{current%%=*}}" in
{values}
      *) _files; return ;;
    esac
    compadd -a found
    return
  fi
  case $verb in
{keys}
  esac
  compadd -S '' -a found
}}
compdef _twoviews twoviews
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
    if shell != "bash":
        return _fish() if shell == "fish" else _zsh()
    named = "\n".join(f'      {verb}) COMPREPLY=($(compgen -W "{_words(verb)}" -- "$current")) ;;' for verb in VERBS)
    values = "\n".join(
        f'      {verb}:{key}) COMPREPLY=($(compgen -W "{" ".join(found)}" -- "${{current#*=}}")) ;;'
        for verb in VERBS
        for key in keys(verb=verb)
        if (found := _values(verb, key))
    )
    return _BASH.format(verbs=" ".join(VERBS), values=values, keys=named)


def _words(verb: str) -> str:
    also = f"{VIEWS} " if verb == "runs" else ""
    return also + " ".join(f"{key}=" for key in keys(verb=verb)) + " --help"


def _values(verb: str, key: str) -> list[str]:
    """Return the values that can be listed."""
    own = rule(verb, key)
    if own.type is bool:
        return ["true", "false"]
    return [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in own.choices]


def _zsh() -> str:
    named = "\n".join(f"    {verb}) found=({_words(verb)}) ;;" for verb in VERBS)
    listed = [(verb, key, _values(verb, key)) for verb in VERBS for key in keys(verb=verb)]
    values = "\n".join(f"      {verb}:{key}) found=({' '.join(found)}) ;;" for verb, key, found in listed if found)
    return _ZSH.format(verbs=" ".join(VERBS), values=values, keys=named)


def _fish() -> str:
    lines = [f'complete -c twoviews -f -n __fish_use_subcommand -a "{" ".join(VERBS)}"']
    for verb in VERBS:
        seen = f'-n "__fish_seen_subcommand_from {verb}"'
        lines.append(f'complete -c twoviews {seen} -a "{_words(verb)}"')
        for key in keys(verb=verb):
            if found := _values(verb, key):
                lines.append(f'complete -c twoviews {seen} -a "{" ".join(f"{key}={value}" for value in found)}"')
    return "\n".join(lines) + "\n"
