package scenarios

import (
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/e2e/harness"
)

// mixed: captured to uncaptured and back, with plaintext permitted and not.
func mixed() scenario {
	const in, out = "ambit-mixed-in", "ambit-mixed-out"
	return scenario{
		name: "02-captured-and-uncaptured", manifest: "mixed.yaml", namespaces: []string{in, out}, enrolled: []string{in},
		tell: func(t *testing.T, w *world) {
			in, out := w.family.Namespace(in), w.family.Namespace(out)
			captures := w.capture(t, nodes()...)
			permitted := slices.Concat(w.everyWay(t, in, out, w.crossings()), w.everyWay(t, out, in, w.crossings()))
			w.expect(t, permitted)
			// The wire shows it in clear: that is what plain means, and proof that a capture would have seen it elsewhere.
			for _, capture := range captures {
				if len(harness.InClear(capture.Flows(w.addresses(t, in, out)...))) == 0 {
					t.Errorf("the link of %s saw no payload in clear between a captured and an uncaptured pod", capture.Node)
				}
			}

			refused := w.everyWay(t, out, in, w.crossings())
			for i := range refused {
				refused[i].refused = true
			}
			w.apply(t, "mixed-strict.yaml")
			w.eventually(t, "plaintext refused under STRICT", refused)
			w.expect(t, slices.Concat(w.everyWay(t, in, in, w.pairs()), w.everyWay(t, in, out, w.crossings())))

			w.remove(t, "mixed-strict.yaml")
			w.eventually(t, "plaintext taken again without STRICT", permitted)
		},
	}
}
