"""The words and sentence patterns of the atlas world: data only, read by `world.py`.

A *pattern* is a string of space-separated words; ``{slot}`` stands for a pattern drawn uniformly from that slot, so
slots nest.  A *theme* is what a sentence is about (a city, a topic, a programming language): slots and patterns of its
own beside those of its kind.  A *kind* is a genre with its themes, shared slots and patterns, and its share of the
documents.

Every word is either ``\\w+`` or a run of punctuation, so that splitting at spaces and the tokenizer's
pre-tokenization agree; names of several words are joined by underscores.

The facts of `CITIES` are the everyday ones (country, most widely used official language, legal tender, continent),
as of 2025.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

Slots = Mapping[str, tuple[str, ...]]

RELATIONS: tuple[str, ...] = ("country", "language", "currency", "continent")


@dataclass(frozen=True)
class City:
    """One row of the facts table; every field is a single word."""

    name: str
    country: str
    language: str
    currency: str
    continent: str

    def attribute(self, relation: str) -> str:
        """The value of `relation`, one of `RELATIONS`."""
        return {
            "country": self.country,
            "language": self.language,
            "currency": self.currency,
            "continent": self.continent,
        }[relation]


@dataclass(frozen=True)
class Theme:
    """What a sentence is about.

    Attributes:
        parts: What it is made of, by label (``sentiment:negative``): the slots that each part brings.
        patterns: Sentences beside those of its kind.
    """

    parts: Mapping[str, Slots] = field(default_factory=dict)
    patterns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its labels."""
        return " ".join(self.parts)

    @cached_property
    def slots(self) -> Slots:
        """Of all its parts."""
        return {slot: values for slots in self.parts.values() for slot, values in slots.items()}


@dataclass(frozen=True)
class Kind:
    """A genre of documents.

    Attributes:
        name: Its label.
        weight: Relative frequency among documents.
        themes: What its documents can be about.
        slots: Shared by its themes.
        patterns: Sentences shared by its themes.
        fixed: Slots drawn once a document and then kept, such as the person a biography is about.
        themes_per_document: How many themes a document alternates between.
    """

    name: str
    weight: float
    themes: tuple[Theme, ...]
    slots: Slots = field(default_factory=dict)
    patterns: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    themes_per_document: int = 1


def _words(text: str) -> tuple[str, ...]:
    """Space-separated words."""
    return tuple(text.split())


def _lines(text: str) -> tuple[str, ...]:
    """One pattern a line."""
    return tuple(line.strip() for line in text.strip().splitlines())


def _slots(**values: str) -> dict[str, tuple[str, ...]]:
    """Slots given as lists separated by ``|`` (several words an entry) or by spaces (one word an entry)."""
    return {k: tuple(p.strip() for p in v.split("|")) if "|" in v else _words(v) for k, v in values.items()}


CITIES: tuple[City, ...] = tuple(
    City(*line.split())
    for line in _lines(
        """
        Paris France French euro Europe
        Berlin Germany German euro Europe
        Vienna Austria German euro Europe
        Rome Italy Italian euro Europe
        Madrid Spain Spanish euro Europe
        Lisbon Portugal Portuguese euro Europe
        Athens Greece Greek euro Europe
        Helsinki Finland Finnish euro Europe
        Amsterdam Netherlands Dutch euro Europe
        London United_Kingdom English pound Europe
        Warsaw Poland Polish zloty Europe
        Prague Czechia Czech koruna Europe
        Budapest Hungary Hungarian forint Europe
        Stockholm Sweden Swedish krona Europe
        Oslo Norway Norwegian krone Europe
        Copenhagen Denmark Danish krone Europe
        Moscow Russia Russian ruble Europe
        Kyiv Ukraine Ukrainian hryvnia Europe
        Ankara Turkey Turkish lira Asia
        Tokyo Japan Japanese yen Asia
        Beijing China Mandarin yuan Asia
        Seoul South_Korea Korean won Asia
        Bangkok Thailand Thai baht Asia
        Hanoi Vietnam Vietnamese dong Asia
        Jakarta Indonesia Indonesian rupiah Asia
        Delhi India Hindi rupee Asia
        Tehran Iran Persian rial Asia
        Baghdad Iraq Arabic dinar Asia
        Riyadh Saudi_Arabia Arabic riyal Asia
        Cairo Egypt Arabic pound Africa
        Rabat Morocco Arabic dirham Africa
        Nairobi Kenya Swahili shilling Africa
        Lagos Nigeria English naira Africa
        Addis_Ababa Ethiopia Amharic birr Africa
        Chicago United_States English dollar North_America
        Toronto Canada English dollar North_America
        Mexico_City Mexico Spanish peso North_America
        Havana Cuba Spanish peso North_America
        Lima Peru Spanish sol South_America
        Bogota Colombia Spanish peso South_America
        Santiago Chile Spanish peso South_America
        Brasilia Brazil Portuguese real South_America
        Sydney Australia English dollar Oceania
        Auckland New_Zealand English dollar Oceania
        """
    )
)

SHE = _words(
    "Anna Clara Diana Elena Fatima Grace Hanna Ines Julia Karin Laura Maria Nadia Olga Petra Rosa Sara Tanya Vera Yuki "
    "Agnes Beata Carmen Dora Emma Freya Gloria Helga Irene Judith Kira Lena Mona Nora Pilar Rita Sofia Teresa Ursula"
)
HE = _words(
    "Adam Boris Carlos David Erik Felix Georg Hassan Ivan Jonas Kofi Leo Marco Nils Omar Paul Ravi Simon Tomas Viktor "
    "Anton Bruno Cyril Dario Emil Franz Gustav Henrik Igor Jakob Karim Lukas Mateo Noah Oscar Pedro Rashid Stefan Theo"
)

COMMON: dict[str, tuple[str, ...]] = {
    "person": SHE + HE,
    "any_city": tuple(city.name for city in CITIES),
    **_slots(
        adjective="red blue green old new small big bright dark quiet heavy warm cold tall narrow wide soft "
        "broken empty hidden strange simple distant golden silver wooden dusty clean gentle sharp faded clever smooth "
        "rough sleepy crooked elegant tiny giant fresh gloomy noisy humble yellow purple orange hollow shiny",
        thing="car house table tree ship book lamp chair basket mirror letter bicycle clock blanket kettle ladder "
        "bottle window door garden bridge wall boat wagon drum bell coat hat candle box umbrella bucket compass "
        "hammer carpet statue barrel saddle anchor lantern pillow curtain shovel whistle helmet wheel rope needle "
        "spoon trunk",
        animal="dog cat horse bird fox goat rabbit turtle owl bear sheep wolf mouse deer donkey otter badger heron "
        "camel lizard squirrel swan hedgehog pigeon",
        place="market station harbour library museum square park bakery theatre hospital school garden cathedral "
        "stadium castle river island lighthouse monastery tavern quarry meadow canal pharmacy post_office zoo",
        weekday="Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        month="January February March April May June July August September October November December",
        season="spring summer autumn winter",
        number="two three four five six seven eight nine ten twelve twenty thirty fifty",
        year="1974 1981 1989 1993 1998 2001 2005 2009 2014 2018 2021 2023",
        weather="sunny rainy windy foggy snowy cloudy stormy humid frosty mild",
        food="bread cheese soup rice fish apples honey noodles cake beans tea coffee olives pancakes mushrooms "
        "lentils cherries salad walnuts garlic sausages pears yoghurt almonds",
    ),
}

# --- travel: the city's own position has to carry its attributes -------------------------------------------------
# What stands before the city is drawn independently of what is said about it, and an aside separates the two, so that
# with local attention (window 2) in the first two layers nothing but the city's residual can hold the facts.

OPENINGS = _lines(
    """
    in {city} ,
    near {city} ,
    around {city} ,
    across {city} ,
    outside {city} ,
    throughout {city} ,
    back in {city} ,
    here in {city} ,
    today in {city} ,
    if you visit {city} ,
    once we reached {city} ,
    for those in {city} ,
    """
)
ASIDES = _lines(
    """
    as everyone knows ,
    so i was told ,
    the guide book says ,
    if i remember well ,
    on any given day ,
    as you might expect ,
    even in the {season} ,
    {person} once explained ,
    """
)
CLAUSES: dict[str, tuple[str, ...]] = {
    "country": ("you are inside {country}", "the laws are of {country}"),
    "language": ("people speak {language}", "the signs use {language}"),
    "currency": ("you pay the {currency}", "shops accept the {currency}"),
    "continent": ("you stand in {continent}", "the map reads {continent}"),
}
NEUTRAL = _lines(
    """
    we met {person} at the {place}
    {person} bought the {adjective} {thing}
    the {place} was {adjective} and {adjective}
    it was a {weather} {weekday}
    they serve {food} with {food}
    {person} lost a {adjective} {thing}
    a {animal} slept by the {place}
    """
)

TRAVEL = Kind(
    name="travel",
    weight=0.6,
    themes=tuple(
        Theme(
            {
                f"city:{city.name}": {
                    "city": (city.name,),
                    **{relation: (city.attribute(relation),) for relation in RELATIONS},
                }
            }
        )
        for city in CITIES
    ),
    slots={
        "opening": OPENINGS,
        "aside": ASIDES,
        "fact": tuple(f"{{{relation}_clause}}" for relation in RELATIONS),
        **{f"{relation}_clause": clauses for relation, clauses in CLAUSES.items()},
        "event": NEUTRAL,
    },
    patterns=("{opening} {aside} {fact} .",) * 5 + ("{opening} {aside} {event} .",),
    themes_per_document=3,
)

# --- reviews: product category x sentiment ---------------------------------------------------------------------

_PRODUCTS = {
    "electronics": _slots(
        product="camera phone laptop headset keyboard tablet printer radio",
        part="battery screen charger speaker cable microphone lens antenna",
        use="filming a wedding | calling my parents | working late | playing music | taking photos",
    ),
    "books": _slots(
        product="novel biography atlas cookbook thriller diary memoir anthology",
        part="plot ending chapter prose character cover dialogue binding",
        use="reading in bed | a long flight | my book club | a rainy weekend | learning history",
    ),
    "kitchen": _slots(
        product="blender toaster oven skillet teapot grinder whisk saucepan",
        part="handle lid blade timer plug base spout thermostat",
        use="making breakfast | baking bread | a large family | boiling water | slicing carrots",
    ),
    "clothing": _slots(
        product="jacket sweater scarf dress shirt gloves raincoat vest",
        part="zip sleeve collar fabric pocket button lining seam",
        use="walking in snow | a formal dinner | the office | a mountain hike | dancing",
    ),
    "games": _slots(
        product="puzzle boardgame console chessboard racket football skateboard yoyo",
        part="rules pieces controller manual level net",
        use="family evenings | two players | small children | a birthday party | training alone",
    ),
}
_SENTIMENTS = {
    "positive": _slots(
        opinion="wonderful great excellent superb lovely brilliant perfect delightful",
        adverb="truly really absolutely always",
        verdict="i would buy it again | it deserves {number} stars | i recommend it to everyone | "
        "best purchase of the year | worth every penny",
        reaction="i smiled | my sister loved it | it made my week | we cheered",
        change="got better every day | still works like new | never let me down",
    ),
    "negative": _slots(
        opinion="terrible awful horrible poor dreadful useless disappointing shoddy",
        adverb="sadly painfully completely hardly",
        verdict="i want my money back | it deserves no stars | i warn everyone to avoid it | "
        "worst purchase of the year | a waste of money",
        reaction="i sighed | my sister hated it | it ruined my week | we complained",
        change="got worse every day | failed after {number} days | let me down at once",
    ),
}
REVIEWS = Kind(
    name="reviews",
    weight=0.14,
    themes=tuple(
        Theme({f"category:{p}": ps, f"sentiment:{s}": ss})
        for p, ps in _PRODUCTS.items()
        for s, ss in _SENTIMENTS.items()
    ),
    patterns=_lines(
        """
        i ordered this {product} in {month} and it is {adverb} {opinion} .
        the {part} of the {product} is {opinion} .
        after {number} weeks the {part} {change} .
        i use it for {use} and {reaction} .
        the {part} felt {opinion} from the start , {verdict} .
        {verdict} , the {product} was {opinion} .
        delivery took {number} days , but the {part} was {adverb} {opinion} .
        """
    ),
    fixed=("product",),
)

# --- biographies: profession x pronoun -------------------------------------------------------------------------

_PROFESSIONS = {
    "surgeon": _slots(
        craft="operated treated examined", work="patients hearts wounds", venue="clinic ward", prize="medical"
    ),
    "lawyer": _slots(
        craft="defended advised represented", work="clients tenants witnesses", venue="court tribunal", prize="justice"
    ),
    "painter": _slots(
        craft="painted sketched exhibited", work="portraits landscapes murals", venue="studio gallery", prize="arts"
    ),
    "physicist": _slots(
        craft="measured modelled studied",
        work="particles lasers neutrinos",
        venue="laboratory observatory",
        prize="physics",
    ),
    "teacher": _slots(
        craft="taught graded tutored", work="pupils lessons classes", venue="classroom college", prize="education"
    ),
    "journalist": _slots(
        craft="reported interviewed investigated",
        work="stories scandals elections",
        venue="newsroom bureau",
        prize="press",
    ),
    "farmer": _slots(craft="planted harvested raised", work="wheat barley cattle", venue="farm barn", prize="harvest"),
    "architect": _slots(
        craft="designed drew restored", work="towers bridges facades", venue="drawing_office site", prize="building"
    ),
    "pianist": _slots(
        craft="performed recorded rehearsed",
        work="sonatas concertos waltzes",
        venue="concert_hall conservatory",
        prize="music",
    ),
    "chef": _slots(
        craft="cooked roasted seasoned", work="sauces desserts stews", venue="restaurant kitchen", prize="culinary"
    ),
    "programmer": _slots(
        craft="coded debugged released",
        work="compilers databases browsers",
        venue="startup datacentre",
        prize="software",
    ),
    "pilot": _slots(
        craft="flew landed navigated", work="airliners gliders helicopters", venue="cockpit airfield", prize="aviation"
    ),
    "dentist": _slots(
        craft="drilled polished extracted", work="molars crowns gums", venue="dental_office hospital", prize="hygiene"
    ),
    "poet": _slots(
        craft="composed recited rhymed", work="verses ballads sonnets", venue="salon cafe", prize="literary"
    ),
    "carpenter": _slots(
        craft="sawed carved assembled", work="cupboards staircases rafters", venue="workshop sawmill", prize="crafts"
    ),
}
_PRONOUNS = {
    "she": {"subject": SHE, "pronoun": ("she",), "possessive": ("her",)},
    "he": {"subject": HE, "pronoun": ("he",), "possessive": ("his",)},
}
BIOGRAPHIES = Kind(
    name="biographies",
    weight=0.14,
    themes=tuple(
        Theme({f"profession:{name}": {"profession": (name,), **slots}, f"pronoun:{pronoun}": forms})
        for name, slots in _PROFESSIONS.items()
        for pronoun, forms in _PRONOUNS.items()
    ),
    slots=_slots(
        degree="diploma doctorate scholarship certificate fellowship",
        trait="patient curious stubborn generous careful ambitious modest witty diligent fearless punctual",
    ),
    patterns=_lines(
        """
        {subject} is a {profession} who was born in {any_city} in {year} .
        {pronoun} {craft} {work} at the {venue} for {number} years .
        in {year} {pronoun} received the national {prize} prize .
        {possessive} {work} made {subject} famous as a {trait} {profession} .
        {subject} earned a {degree} and moved to {any_city} .
        colleagues at the {venue} call {subject} {trait} and {trait} .
        every {weekday} {pronoun} visits the {venue} with {possessive} friend {person} .
        """
    ),
    fixed=("subject",),
)

# --- news: topic -----------------------------------------------------------------------------------------------

_TOPICS = {
    "sports": _slots(
        actor="striker goalkeeper coach sprinter referee team jockey swimmer",
        deed="scores beats trains injures defeats signs tackles outruns",
        object="rivals champions title medal final league trophy penalty",
        detail="in extra time | after a penalty | before {number} thousand fans",
    ),
    "politics": _slots(
        actor="minister parliament senator mayor opposition cabinet ambassador premier",
        deed="rejects approves debates vetoes drafts repeals ratifies amends",
        object="bill treaty budget reform amendment coalition referendum embargo",
        detail="after a vote | despite protests | ahead of the election",
    ),
    "business": _slots(
        actor="bank retailer investor startup carmaker insurer wholesaler brewer",
        deed="acquires sells reports forecasts cuts raises invests outsources",
        object="shares profits dividend merger factory loans bonds pension",
        detail="in the third quarter | as markets fall | amid inflation",
    ),
    "science": _slots(
        actor="astronomers biologists researchers chemists geologists team botanists zoologists",
        deed="discover observe simulate publish confirm detect calculate sequence",
        object="galaxy protein fossil molecule comet vaccine enzyme glacier",
        detail="with a new telescope | in a large trial | using satellite data",
    ),
    "weather": _slots(
        actor="storm blizzard heatwave flood hurricane drought tornado cyclone",
        deed="hits threatens floods closes damages isolates batters soaks",
        object="coast villages airport harvest roads valley orchards ferries",
        detail="for the second week | as rivers rise | despite warnings",
    ),
    "culture": _slots(
        actor="singer director orchestra novelist festival actress ballet sculptor",
        deed="premieres wins opens rehearses announces celebrates choreographs curates",
        object="film album opera award exhibition tour screenplay tapestry",
        detail="to a full house | on the opening night | to warm applause",
    ),
    "technology": _slots(
        actor="engineers hackers developers regulators robots startup coders carriers",
        deed="launch patch ban upgrade test encrypt benchmark overclock",
        object="chips software satellites servers drones apps modems sensors",
        detail="over privacy fears | at a trade fair | with open code",
    ),
}
NEWS = Kind(
    name="news",
    weight=0.13,
    themes=tuple(Theme({f"topic:{name}": slots}) for name, slots in _TOPICS.items()),
    slots=_slots(source="officials witnesses experts analysts residents critics observers bystanders"),
    patterns=_lines(
        """
        headline : {actor} {deed} {object} {detail} .
        {any_city} , {weekday} : {actor} {deed} {object} .
        {source} said on {weekday} that the {object} would matter for the {actor} .
        the {actor} spoke of the {object} {detail} .
        {number} {source} asked about the {object} in {month} .
        """
    ),
)

# --- code: programming language --------------------------------------------------------------------------------

_CODE = {
    "python": """
        def {function} ( {variable} ) : return {variable} {operator} {digit}
        for {variable} in range ( {digit} ) : {function} ( {variable} )
        import {module} as {variable}
        if {variable} is None : raise ValueError
        {variable} = [ {function} ( x ) for x in {variable} ]
        with open ( {variable} ) as file : print ( file )
        """,
    "java": """
        public static void {function} ( String {variable} ) {
        private final int {variable} = {digit} ;
        System . out . println ( {variable} ) ;
        {variable} = new ArrayList < Integer > ( {digit} ) ;
        throws IOException , extends Object implements Runnable
        """,
    "c": """
        # include < stdio . h >
        int {function} ( char * {variable} ) { return {digit} ; }
        printf ( " % d " , {variable} ) ;
        struct node * {variable} = malloc ( sizeof ( {variable} ) ) ;
        free ( {variable} ) ; {variable} = NULL ;
        """,
    "rust": """
        fn {function} ( {variable} : & str ) -> u32 { {digit} }
        let mut {variable} : Vec < u32 > = Vec :: new ( ) ;
        match {variable} { Some ( x ) => x , None => {digit} }
        impl Clone for {variable} { }
        println ! ( {variable} ) ;
        """,
    "javascript": """
        const {variable} = ( x ) => x {operator} {digit} ;
        console . log ( {variable} ) ;
        async function {function} ( {variable} ) { await {variable} ; }
        document . getElementById ( {variable} ) ;
        if ( {variable} === undefined ) { return null ; }
        """,
    "sql": """
        SELECT {variable} FROM {table} WHERE {variable} > {digit} ;
        INSERT INTO {table} VALUES ( {digit} , {digit} ) ;
        UPDATE {table} SET {variable} = {digit} ;
        SELECT COUNT ( * ) FROM {table} GROUP BY {variable} ;
        DELETE FROM {table} WHERE {variable} IS NULL ;
        """,
}
CODE = Kind(
    name="code",
    weight=0.12,
    themes=tuple(Theme({f"code:{name}": {}}, _lines(patterns)) for name, patterns in _CODE.items()),
    slots=_slots(
        function="parse merge sort load update render encode fetch validate compute filter resize flush retry hash",
        variable="count total index name value result items path node buffer key size offset queue cache token depth",
        operator="+ - * / %",
        digit="0 1 2 3 4 5 7 8 10 16 32 64 100 255",
        module="numpy json random math pandas socket",
        table="users orders products invoices payments sessions",
    ),
)

# --- natural languages -----------------------------------------------------------------------------------------

_TONGUES = {
    "french": (
        _slots(
            who="le garçon | la fille | mon ami | notre voisin | le professeur | la reine",
            does="mange regarde achète trouve cherche oublie",
            what="une pomme | le chien rouge | un vieux livre | la grande maison | du fromage | une lettre",
            when="demain | souvent | ce matin | chaque jour | pendant la nuit",
        ),
        ("{who} {does} {what} {when} .", "je pense que {who} {does} {what} .", "il fait froid et {who} est malade ."),
    ),
    "german": (
        _slots(
            who="der Junge | das Mädchen | mein Freund | unser Nachbar | der Lehrer | die Königin",
            does="isst sieht kauft findet sucht vergisst",
            what="einen Apfel | den roten Hund | ein altes Buch | das große Haus | etwas Käse | einen Brief",
            when="heute | morgen | oft | jeden Tag | in der Nacht",
        ),
        ("{who} {does} {when} {what} .", "ich glaube , {who} {does} {what} .", "es ist kalt und {who} ist krank ."),
    ),
    "spanish": (
        _slots(
            who="el niño | la niña | mi amigo | nuestro vecino | el maestro | la reina",
            does="come mira compra encuentra busca olvida",
            what="una manzana | el perro rojo | un libro viejo | la casa grande | un poco de queso | una carta",
            when="hoy | mañana | siempre | cada día | por la noche",
        ),
        ("{who} {does} {what} {when} .", "creo que {who} {does} {what} .", "hace frío y {who} está cansado ."),
    ),
    "italian": (
        _slots(
            who="il ragazzo | la ragazza | il mio amico | il nostro vicino | la maestra | la regina",
            does="mangia guarda compra trova cerca dimentica",
            what="una mela | il cane rosso | un vecchio libro | la casa grande | del formaggio | una lettera",
            when="oggi | domani | spesso | ogni giorno | di notte",
        ),
        ("{who} {does} {what} {when} .", "penso che {who} {does} {what} .", "fa freddo e {who} ha fame ."),
    ),
    "dutch": (
        _slots(
            who="de jongen | het meisje | mijn vriend | onze buurman | de leraar | de koningin",
            does="eet ziet koopt vindt zoekt vergeet",
            what="een appel | de rode hond | een oud boek | het grote huis | wat kaas | een brief",
            when="vandaag | morgen | vaak | elke dag | in de nacht",
        ),
        ("{who} {does} {when} {what} .", "ik denk dat {who} {what} {does} .", "het is koud en {who} is ziek ."),
    ),
}
TONGUES = Kind(
    name="tongues",
    weight=0.07,
    themes=tuple(Theme({f"tongue:{name}": slots}, patterns) for name, (slots, patterns) in _TONGUES.items()),
)

# --- narrative: filler -----------------------------------------------------------------------------------------

NARRATIVE = Kind(
    name="narrative",
    weight=0.06,
    themes=(Theme(),),
    slots={
        "hero": SHE + HE,
        **_slots(
            action="saw liked found sold painted moved repaired carried forgot cleaned noticed borrowed "
            "wrapped buried polished dropped inspected measured",
            motion="walked ran drove sailed hurried wandered marched crept strolled",
            mood="happy tired nervous proud lonely calm jealous grateful bored thrilled",
            clue="smelled of {food} | was {adjective} | belonged to {person} | came from {any_city}",
        ),
    },
    patterns=_lines(
        """
        {hero} {action} the {adjective} {thing} near the {place} .
        one {weather} {weekday} {hero} {motion} to the {place} with a {animal} .
        the {animal} {action} {number} things and {hero} felt {mood} .
        {hero} took the train to {any_city} and met {person} .
        the {thing} {clue} , so {person} {motion} home .
        they ate {food} and {food} until the {season} ended .
        {person} wrote a long letter about {any_city} .
        """
    ),
    fixed=("hero",),
)

KINDS: tuple[Kind, ...] = (TRAVEL, REVIEWS, BIOGRAPHIES, NEWS, CODE, TONGUES, NARRATIVE)


def vocabulary(kinds: Iterable[Kind] = KINDS) -> tuple[str, ...]:
    """Every word any pattern can produce, sorted."""
    patterns: list[str] = [value for values in COMMON.values() for value in values]
    for kind in kinds:
        patterns += kind.patterns
        patterns += [value for values in kind.slots.values() for value in values]
        for theme in kind.themes:
            patterns += theme.patterns
            patterns += [value for values in theme.slots.values() for value in values]
    words = {word for pattern in patterns for word in pattern.split()}
    return tuple(sorted(word for word in words if not is_slot(word)))


def is_slot(word: str) -> bool:
    """Whether a word of a pattern stands for a slot (a lone brace, as code has them, does not)."""
    return len(word) > 2 and word.startswith("{") and word.endswith("}")
