"""Plain prose about nothing in particular: what steering costs is measured on it when the caller gives no texts."""

TEXTS = (
    "The river rises in the hills above the town and runs east for ninety kilometres before it meets the sea. In spring the "
    "meadows on both banks are flooded, and herons come to fish in the shallow water.",
    "To change the filter, switch off the pump, close both valves and unscrew the housing by hand. Rinse the cartridge "
    "under running water; if it stays brown, put in a new one before you open the valves again.",
    "She had worked at the library for eleven years, first in the cellar with the maps and later at the desk by the window. "
    "Most visitors asked her the way to the newspapers, and a few asked what she was reading.",
    "A prime number has exactly two divisors, one and itself. Euclid showed that there is no largest one: multiply any list "
    "of primes, add one, and the result has a prime factor that is missing from the list.",
    "The council voted on Tuesday to move the weekly market to the square behind the station. Traders had asked for more "
    "room, and the old site will be dug up for a new water main in the autumn.",
    "Whisk the eggs with a pinch of salt, pour them into the hot pan and draw the edges towards the middle as they set. "
    "Fold the omelette while its top is still soft, and let it rest on the plate for a minute.",
    "The function reads one line at a time and splits it at the commas. Fields in quotes may contain commas themselves, so "
    "a small state variable keeps track of whether the reader is inside a quoted field.",
    "Copper was among the first metals that people worked. It melts at about 1,085 degrees Celsius, conducts electricity "
    "better than anything but silver, and turns green where rain has reached it for many years.",
    "Our train was late, so we missed the last ferry and took a room above the harbour office. The landlord gave us soup "
    "and told us about the winter when the whole bay froze and the mail came over the ice on a sledge.",
    "The second movement is slow and almost still: two horns hold a single chord while the violas repeat a figure of four "
    "notes. Only near the end does the oboe enter, with the melody that opened the piece.",
    "Tenants may end the agreement at the end of any month with three months' notice in writing. The deposit is paid back "
    "within six weeks after the keys have been returned, less the cost of any damage.",
    "Bees find their way by the position of the sun and by landmarks. When a forager has discovered a good source, it "
    "returns to the hive and moves over the comb in a pattern that tells the others direction and distance.",
    "The match was decided in the last minutes. After a long spell of defending, the visitors won a free kick near the left "
    "corner, and their captain headed the ball in from six metres.",
    "Between 1850 and 1900 the population of the city grew from forty thousand to almost half a million. Whole districts "
    "were built within a few years, most of them without drains, and fever was common in the summer.",
    "If the printer does not answer, check that the cable is firmly in its socket and that the light beside it is on. Then "
    "restart the computer, open the settings and choose the printer again from the list.",
    "Snow lay on the pass until the middle of May that year. The shepherds kept their flocks in the lower valley, mended "
    "fences, and waited for the first warm wind from the south.",
)
