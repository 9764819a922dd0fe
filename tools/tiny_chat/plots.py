"""The rules by which stories are written: what may stand at each place of a sentence.

At most places several words fit, so a story may go several ways, and a model that learned from many
has a distribution to draw from. What has to stay the same from the first sentence to the last
(hero, friend, animal, thing) is a gap, filled once.

Gaps: {name} is {kind:a}, spoken of as {he}, {him}, {his}; {nature} is how the hero is; {friend} is
family; {animal} is whom the hero meets; {thing} has {color} and {quality}; and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["ENDINGS", "HOMES", "OPENINGS", "PLOTS", "RULES"]

RULES: Mapping[str, Sequence[str]] = {
    # Of the hero
    "nature": (
        *("little", "young", "kind", "brave", "clever", "curious", "quiet", "funny", "shy"),
        *("gentle", "happy", "small", "lazy", "good", "poor", "merry"),
    ),
    "who_did": (
        *("", "", "", " who <liked> to <hobby>"),
        *(
            " who [lived|played|worked] <in> the <look> {place}",
            " with a <glad> [heart|face|voice]",
        ),
    ),
    "who": ("{name}", "{name}", "{he}", "{he}", "the {kind}", "the {nature} {kind}"),
    "whose": ("{his}", "{his}", "{name}'s"),
    "liked": ("loved", "liked", "wanted", "hoped", "used"),
    "hobby": (
        *("sing", "dance", "play", "read", "run", "jump", "swim", "draw", "climb", "sleep"),
        *("dream", "cook", "paint", "walk", "hide", "laugh"),
    ),
    "glad": ("happy", "glad", "proud", "cheerful", "merry", "pleased", "thankful"),
    "sad": ("sad", "worried", "upset", "tired", "lonely", "sorry", "afraid"),
    "very": ("", "", "very ", "so ", "quite ", "truly "),
    "was": ("was", "felt", "looked", "seemed"),
    "laughed": ("laughed", "smiled", "danced", "sang", "nodded", "jumped", "cheered"),
    "went": ("went", "walked", "ran", "hurried", "wandered", "skipped", "came"),
    "home": ("home", "home", "back", "away", "inside"),
    # Of time
    "day": ("day", "morning", "evening", "afternoon", "night"),
    "when": (
        *("one <day>", "one <day>", "one {weather} <day>", "one <warm> <day>", "on a <warm> <day>"),
        *("on a {weather} <day>", "early one <day>", "late one <day>"),
    ),
    "warm": ("warm", "cool", "fine", "long", "quiet", "dark", "gray", "bright", "busy"),
    "then": (
        *("", "", "", "", "then ", "soon ", "now ", "so ", "later ", "suddenly ", "but then "),
        *("after that ", "at last ", "at once ", "and so ", "just then ", "a little later "),
    ),
    "how": (
        *("", "", "", "quickly ", "slowly ", "quietly ", "softly ", "gladly ", "gently "),
        *("happily ", "carefully ", "bravely ", "calmly "),
    ),
    # Of places
    "the": ("the", "the", "a", "{his}", "that", "an old"),
    "in": ("in", "near", "by", "behind", "beside"),
    "look": (
        *("big", "small", "old", "tall", "wide", "lovely", "quiet", "dark", "green", "high"),
        *("broken", "empty", "pretty", "white", "lonely"),
    ),
    "tree": (
        *("tree", "bush", "rock", "bench", "fence", "bridge", "wall", "log", "door", "gate"),
        *("well", "leaf", "hedge", "chair"),
    ),
    "spot": (
        *("<under> <the> <tree>", "<under> <the> <look> <tree>", "<under> <the> <look> <tree>"),
        "[in|on] the [<look>|<look>|<warm>] [grass|road|path|sand|snow|hay|mud|ground]",
    ),
    "under": ("under", "behind", "near", "beside", "by", "on", "over"),
    "house": ("house", "hut", "cottage", "barn", "cave", "tower", "mill", "home", "hole"),
    "land": ("land", "town", "village", "valley", "country", "city", "wood", "place"),
    # Ends of sentences
    "together": (
        *("together", "outside", "again", "all day", "every day", "in the sun", "at night"),
        *("with {his} {friend}", "in the {place}", "in the <look> {place}"),
    ),
    "end": (
        *("", "", "", " at once", " again", " that <day>", " with a <broad> smile", " too"),
        *(" for a while", " in the {place}", " all the [way|time]"),
    ),
    "broad": ("broad", "big", "happy", "shy", "little", "warm"),
    "late": (
        *("", "", " that <day>", " in the <day>", " before [dinner|supper|lunch|bed]"),
        *(" until [night|dark|noon|morning|sunset]", " for a [long|short|little] [time|while]"),
    ),
    # Of the animal
    "size": ("little", "big", "old", "young", "gray", "kind", "wise", "hungry", "friendly", "busy"),
    "animal": ("{animal}", "<size> {animal}", "<size> {animal}"),
    "beast": ("the {animal}", "the {animal}", "the <size> {animal}", "it", "that {animal}"),
    "came": ("came", "walked", "ran", "hopped", "stepped", "wandered", "crept"),
    "along": ("along", "by", "past", "over", "closer", "near", "out"),
    "said": ("said", "asked", "whispered", "called", "cried", "answered", "replied"),
    # Of the thing
    "seen": ("found", "saw", "noticed", "spotted", "discovered"),
    "much": ("{quality}", "{color}", "{quality} {color}", "very {quality}"),
    "it": ("it", "it", "the {thing}", "the {color} {thing}", "the {quality} {thing}"),
}

OPENINGS = (
    "[once upon a time|once upon a time|once upon a time|long ago|many years ago][,|,|]"
    " [there [was|lived]|in a <look> <land>[,|] there [was|lived]] a [{nature} |{nature} |<nature>"
    " and {nature} |]{kind} [named|called] {name}<who_did>.",
    "there once [was|lived] a {nature} {kind} [named|called] {name}<who_did>.",
    "<when>[,|] a {nature} {kind} [named|called] {name} [woke up|got up|went out|left home]"
    "[ early| late| alone| before [noon|lunch|sunset]].",
    "{name} was a [|<nature> and |<nature>, ]{nature} {kind}<who_did>.",
    "in a <look> [house|hut|cottage|barn] <in> the <look> {place} [there |][lived|was] a {nature}"
    " {kind} [named|called] {name}.",
)
HOMES = (
    "<who> <liked> to <hobby> [and <hobby> |][<together>|<together>|<in> the <look> {place}].",
    "[every|each|almost every] <day>[,|] <who> <how><went> to the <look> {place}"
    " [with {his} [<nature> |]{friend}|to <hobby>|to <hobby>|alone|to look for [food|fun"
    "|friends]].",
    "<who> [lived|played|slept|stayed] <in> a <look>[| and <look>] <house> <in> the <look>"
    " {place}[ with {his} {friend}|].",
    "<whose> {friend} was [always |often |never |]<very>[<glad>|<sad>|busy|kind] [and|but]"
    " <liked> to <hobby>[ <together>|].",
)
# What happens, what is done about it, and how it ends: the second and third belong to the first.
PLOTS = (
    # a thing is found, and given back
    (
        (
            "<when>[,|] <who> <how><seen> a <much> {thing} <spot>.",
            "<when>[,|] while <who> [was [walking|playing|reading|sleeping]|played] <in> <the>"
            " <look> <tree>, {he} <seen> a <much> {thing}.",
        ),
        (
            "<then><who> <how>[took|picked up|lifted|cleaned] <it> and [showed|took|carried] it to"
            " {his} [<nature> |]{friend}.",
            "<then><who> [wondered|asked|wanted to know|did not know] [who had lost it|whose it was"
            "|where it [came from|belonged]].",
            '"[whose|whose <much>] {thing} is [this|that|it]?" <said> {name}<end>.',
        ),
        (
            "<then>a <animal> <how><came> <along> and <said> that [it had lost|it missed|it needed|"
            "it was looking for] <it>.",
            '"[it|that {thing}|this] is mine," <said> a <animal><end>.',
        ),
        (
            "<then><who> <how>gave <it> back<end>, and <beast> <was> <very><glad>.",
            "<who> <how>[gave|handed|brought] <it> to [the {animal}|the <size> {animal}|it], [and"
            "|so]"
            " <beast> <how><laughed><end>.",
        ),
    ),
    # a thing is lost, and found
    (
        (
            "<when>[,|] <who> [lost|missed|could not find|had lost] {his} <much> {thing}<end>.",
            "<when>[,|] {his} <much> {thing} was [gone|lost|missing|not there][| and <who> <was>"
            " <very><sad>].",
        ),
        (
            "<who> [looked|searched] [everywhere|<spot>|<spot>] and <spot>, but <it> was [gone|not"
            " there|nowhere|still lost].",
            "<then><who> <was> <very><sad> and [began|started|wanted] to [cry|look|search|run].",
            "<then><who> <how>asked {his} [<nature> |]{friend}, but [nobody|no one|{his} {friend}]"
            " had seen <it>.",
        ),
        (
            "<then>a <animal> <how><came> <along> and [asked|wanted to know] why <who> was"
            " <very><sad>.",
            "a <animal> [heard|saw|met] {him}<end> and [wanted|offered|tried|began] to [help|look|"
            "search][ too|].",
        ),
        (
            "<then>they <how>[looked|searched] together and <seen> <it> <spot>.",
            "<beast> [knew|remembered|saw|guessed] where <it> was[, and|: <spot>.] <then>they"
            " [took|brought|carried] it <home>.",
        ),
    ),
    # something is to be cooked, and something is missing
    (
        (
            "<when>[,|] <who> [wanted|wished|hoped|decided|promised] to [make|bake|cook|eat|have]"
            " [some|a little|a lot of|{his} favorite|good] {treat}[ for {his} {friend}|<late>].",
            "<when>[,|] <who> was <very>[hungry|tired] and [wished|asked|looked] for [some|warm"
            "|good"
            "|fresh|more] {treat}<late>.",
        ),
        (
            "but there were no [fresh|more|good|sweet] {food} [in the [house|kitchen|cellar|hut]|at"
            " home|left][| that <day>].",
            "<then><who> [needed|wanted|looked for] [some|fresh|sweet|more|ten|six] {food}[, but|,"
            " and]"
            " {he} had [none|only one|very few|no money].",
        ),
        (
            "<then><who> <how><went> to the <look> {place} and [met|saw|found|visited] a <animal>"
            " with [some|a basket of|a bag of|many|two|fresh] {food}.",
            "[on the [way|road|path]|near the <tree>|in the {place}] <who> [met|saw|passed|found] a"
            " <animal> with [fresh|sweet|some|many|red] {food}.",
        ),
        (
            "<beast> <how>[shared|gave away|brought out] the {food}, and they [ate|made|enjoyed"
            "|had]"
            " [the|some|their|warm] {treat} <together>.",
            "<then>they [took|carried|brought] the {food} <home> and [made|cooked|shared|baked]"
            " {treat}"
            " for [everybody|all|{his} {friend}|the {animal}|two]<late>.",
        ),
    ),
    # a fright
    (
        (
            "<when>[,|] <who> [heard|heard|noticed] a [strange|loud|soft|low|scary] [sound|noise"
            "|cry"
            "|voice|song] <spot>.",
            "<when>[,|] <who> was <very>[afraid|scared|frightened] of the [dark|big|deep|cold]"
            " {place}"
            "<late>.",
        ),
        (
            "<who> <how>[wanted|tried|began|decided] to [run|hide|cry|leave|call {his} {friend}]"
            "[ <spot>|].",
            "<whose> heart [beat|jumped] [fast|faster|hard|loudly], [and|but|so] {he} <how>[held"
            "|took|"
            "hid behind] {his} [{color} |{quality} |]{thing}.",
            '"who is [there|that|here|it]?" <said> {name}<end>.',
        ),
        (
            "<then>a <animal> <how><came> <along> and [said|whispered|called] [hello|good <day>"
            "|that it"
            " was [lost|lonely|cold|hungry|afraid too]].",
            "[but it|it|but that] was [only|just|nothing but] a <animal>[, and it was [lost|cold|"
            "hungry|afraid|alone]|].",
        ),
        (
            "<then><who> <how><laughed> and was not [afraid|scared|worried|alone] [any more|again"
            "|at"
            " all].",
            "<then>they <how><went> <home> together<late>, and [nobody|no one|{he}] was [afraid"
            "|scared"
            "|alone] [any more|again|at all].",
        ),
    ),
    # a friend needs help
    (
        (
            "<when>[,|] <who> <how>[met|saw|found|heard] a <animal> <spot>.",
            "<when>[,|] a <animal> <how><came> to [<whose> <house>|the <house>|the <look> {place}]"
            " [and"
            " asked for [help|food|{treat}]|and was <very><sad>].",
        ),
        (
            "<beast> <was> <very>[sad|tired|hungry|cold|lost|ill], [because|for] it [could not"
            " [find its"
            " way|sleep|go home]|had [no friends|no home|lost its way]].",
            "<beast> [was stuck|had fallen|was caught] <spot> and [could not|did not|was too weak"
            " to]"
            " [move|get out|run|stand up].",
        ),
        (
            "<then><who> <how>[gave|brought|made|offered] it [some|warm|a little|fresh|sweet]"
            " {treat}"
            " and [a <much> {thing}|a [warm|soft|dry] [bed|place|blanket]|some {food}].",
            "<then><who> <how>[helped|pulled|carried|pushed] it [up|out|away|home|inside] with"
            " {his}"
            " [{quality} |{color} |]{thing}.",
        ),
        (
            "<then><beast> <was> <very>[<glad>|better|strong] and [said|whispered] [thank you|many"
            " thanks|goodbye]<end>.",
            "<beast> <how><laughed><end>, [and|so|because] [they were|<who> <was>] <very><glad>.",
        ),
    ),
    # a game
    (
        (
            "<when>[,|] <who> [wanted|hoped|decided|planned] to [play|dance|sing|run|climb]"
            " <spot>, but"
            " {he} was [alone|<very>tired|<very>shy|all alone].",
            "<when>[,|] <who> [made|built|painted|bought|got] a <much> {thing} for {his} [<nature>"
            " |]"
            "{friend}.",
        ),
        (
            "<then>a <animal> <how><came> <along> and [wanted|asked|hoped|begged] to [play|help|see"
            "|try|join in][ too|].",
            "<then><who> <seen> a <animal> <spot>, [and|who] [it |]was [alone|<very>bored"
            "|<very>shy] too.",
        ),
        (
            "<then>they <how>[played|danced|sang|ran|worked|laughed] <together>[ and <laughed>"
            "|<late>].",
            "<who> [showed|taught|told] [it|the {animal}] [a new [game|song|dance|story]|how to"
            " <hobby>|all about the {thing}].",
        ),
        (
            "<then>it [rained|snowed|got dark|was late|got cold], [so|but|and] they <how><went>"
            " <home>"
            " and [had|ate|shared|made] [some|warm|sweet|good] {treat}.",
            "[it was|what] [a|such a] [good|long|happy|lovely|fine] [day|game|time], and [both|they"
            "|all] [were|felt|looked|seemed] <very><glad>.",
        ),
    ),
)
ENDINGS = (
    "[from that <day> on|from then on|after that][,|] {name} and the {animal} [were|became|stayed]"
    " [best|good|close|true|happy] friends[ [for ever|all their lives]|].",
    "<then><who> <how><went> [home|back] and told {his} [<nature> |]{friend} [all about it|the"
    " whole"
    " story|about the <animal>|what had happened]<late>.",
    "[they|{name} and the {animal}] [played|danced|sang|laughed|stayed] together until"
    " [the [sun|rain|moon] [went down|came|rose]|it was [dark|late|time to sleep]|bedtime].",
    "<who> <was> <very><glad>[ and <glad>|] and [slept|dreamed|rested|ate] well<late>.",
    "[and|so|and so] they [all|both] lived [happily|quietly|together|in peace] [ever after|for many"
    " [years|days]|<in> the {place}].",
)
