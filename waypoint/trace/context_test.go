package trace

import "testing"

func TestParse(t *testing.T) {
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for in, want := range map[string]string{
		good: good,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00":      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff":      good, // flags of later versions are not passed on
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":      good,
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what": good,
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what": "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what": "",
		"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":      "",
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01":      "",
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01":      "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01":      "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0":       "",
		"00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01":      "",
		"00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":      "",
		"0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":      "",
		"": "",
	} {
		c, ok := Parse(in)
		got := ""
		if ok {
			got = c.String()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	c, _ := Parse(good)
	if c.TraceID() != "4bf92f3577b34da6a3ce929d0e0e4736" || !c.Sampled() {
		t.Errorf("%q, sampled %v", c.TraceID(), c.Sampled())
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = Parse(good) }); n > 0 {
		t.Errorf("parsing allocates %v times", n)
	}
}

// TestNew: what begins here is valid, and never the same.
func TestNew(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		var c Context
		c.newTrace()
		c.newSpan()
		if _, ok := Parse(c.String()); !ok || seen[c.TraceID()] {
			t.Fatalf("%s", c.String())
		}
		seen[c.TraceID()] = true
	}
}
