package policy_test

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

// refHolds is an Expr in logic of three values: 1 holds, 0 does not, -1 cannot be told.
func refHolds(e policy.Expr, r policy.Request) int {
	is := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	text := func(t policy.Text, s string) bool {
		if t.Fold {
			s = strings.ToLower(s)
		}
		return t.Kind == policy.Exact && s == t.Value || t.Kind == policy.Prefix && strings.HasPrefix(s, t.Value) ||
			t.Kind == policy.Suffix && strings.HasSuffix(s, t.Value) || t.Kind == policy.Present || t.Kind == policy.Contains && strings.Contains(s, t.Value)
	}
	worst := func(all []policy.Expr, stop int) int {
		out := 1 - stop
		for _, e := range all {
			if v := refHolds(e, r); v == stop {
				return stop
			} else if v < 0 {
				out = -1
			}
		}
		return out
	}
	switch e := e.(type) {
	case policy.All:
		return worst(e, 0)
	case policy.Any:
		return worst(e, 1)
	case policy.Not:
		if v := refHolds(e.Expr, r); v >= 0 {
			return 1 - v
		}
		return -1
	case policy.Principal:
		return is(!r.Peer.IsZero() && text(e.Text, r.Peer.String()))
	case policy.SourceIP:
		return is(e.Range.Contains(r.Source.Unmap()))
	case policy.RemoteIP:
		if !r.Remote.IsValid() {
			return -1
		}
		return is(e.Range.Contains(r.Remote))
	case policy.DestinationPort:
		return is(e.First <= r.Destination.Port() && r.Destination.Port() <= e.Last)
	case policy.Field:
		if r.Head == nil {
			return -1
		}
		values := []string{}
		switch e.Name {
		case ":method":
			values = []string{r.Head.Method}
		case ":authority":
			values = []string{r.Head.Authority}
		}
		for _, f := range r.Head.Header {
			if f.Name == e.Name {
				values = append(values, f.Value)
			}
		}
		if len(values) == 0 {
			return 0
		}
		outcome := is(text(e.Text, strings.Join(values, ",")))
		for _, v := range values {
			if is(text(e.Text, v)) != outcome {
				return -1
			}
		}
		return outcome
	case policy.ServerName:
		if r.Server == "" && !r.Unnamed && r.Head == nil {
			return -1
		}
		return is(r.Server != "" && text(e.Text, r.Server))
	case policy.Path:
		if r.Head == nil {
			return -1
		}
		path := strings.Split(r.Head.Path, "?")[0]
		whole, before := is(text(e.Text, path)), is(text(e.Text, strings.Split(path, "#")[0]))
		if whole != before {
			return -1
		}
		return whole
	case policy.Claim:
		return refClaim(e, r, text)
	}
	panic("not known")
}

func refClaim(e policy.Claim, r policy.Request, text func(policy.Text, string) bool) int {
	if r.Head == nil {
		return -1
	}
	var v any = r.Claims
	for i, name := range e.Path {
		fields, ok := v.(map[string]any)
		if !ok {
			return -1
		}
		if v = fields[name]; v == nil {
			return 0
		}
		if s, ok := v.(string); ok && i == len(e.Path)-1 {
			v = []any{s}
		}
	}
	list, ok := v.([]any)
	out := 0
	if !ok {
		out = -1
	}
	for _, one := range list {
		if s, ok := one.(string); !ok {
			out = -1
		} else if text(e.Text, s) {
			return 1
		}
	}
	return out
}

func requests() []policy.Request {
	var out []policy.Request
	for _, c := range connections() {
		out = append(out, policy.Request{Connection: c}, policy.Request{Connection: c, Server: "Shop.example"}, policy.Request{Connection: c, Unnamed: true})
		for _, head := range []policy.Head{
			{Method: "GET", Authority: "Shop.example", Path: "/a/b?x=/c"},
			{Method: "POST", Authority: "shop.example:80", Path: "/a#/c", Header: []h2.Field{{Name: "x", Value: "a"}}},
			{Method: "GET", Path: "/", Header: []h2.Field{{Name: "x", Value: "a"}, {Name: "y", Value: "b"}, {Name: "x", Value: "b"}}},
			{Method: "GET", Path: "/", Header: []h2.Field{{Name: "x", Value: ""}}},
		} {
			r := policy.Request{Connection: c, Head: &head, Remote: netip.MustParseAddr("10.7.7.7")}
			token := r
			token.Claims = map[string]any{"a": "b", "x": []any{"a", 1.0}, "y": map[string]any{"a": []any{"a", "b"}, "x": true}}
			out = append(out, r, token)
		}
	}
	return out
}

func randomExpr(r *rand.Rand, depth int) policy.Expr {
	word := func(words ...string) policy.Text {
		w := words[r.IntN(len(words))]
		return policy.Text{Kind: policy.TextKind(r.IntN(5)), Value: w[:1+r.IntN(len(w))], Fold: r.IntN(2) == 0}
	}
	n := r.IntN(11)
	if depth == 0 {
		n = 3 + r.IntN(8)
	}
	switch n {
	case 0, 1:
		all := make([]policy.Expr, r.IntN(4))
		for i := range all {
			all[i] = randomExpr(r, depth-1)
		}
		if n == 0 {
			return policy.All(all)
		}
		return policy.Any(all)
	case 2:
		return policy.Not{Expr: randomExpr(r, depth-1)}
	case 3:
		return policy.Principal{Text: word("spiffe://cluster.local/ns/shop/sa/alice")}
	case 4:
		ranges := []string{"10.0.0.0/8", "10.1.2.3/32", "fd00::/8"}
		p := netip.MustParsePrefix(ranges[r.IntN(3)])
		if r.IntN(2) == 0 {
			return policy.RemoteIP{Range: p}
		}
		return policy.SourceIP{Range: p}
	case 5:
		return policy.DestinationPort{First: 1, Last: uint16(r.IntN(9000))}
	case 6:
		return policy.Path{Text: word("/a/b", "/", "/a", "/c")}
	case 7:
		names := []string{"a", "x", "y", "x", "a"}
		at := r.IntN(4)
		return policy.Claim{Path: names[at : at+1+r.IntN(2)], Text: word("a", "b")}
	case 8:
		return policy.ServerName{Text: word("shop.example", "Shop.example", ".example")}
	}
	return policy.Field{Name: []string{"x", "y", ":method", ":authority"}[r.IntN(4)], Text: word("a", "b", "a,b", "GET", "shop.example")}
}

// FuzzExpr: an expression holds as in logic of three values, where what cannot be told counts as the worse for whoever asks.
func FuzzExpr(f *testing.F) {
	for seed := range uint64(60) {
		f.Add(seed)
	}
	all := requests()
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 5))
		for range 20 {
			source, operation := randomExpr(r, 3), randomExpr(r, 3)
			rules := []policy.RequestRule{{Source: source, Operation: operation}}
			deny := policy.Steps{{Kind: policy.StepDeny, Enforced: true, Policies: []*policy.RequestPolicy{policy.NewRequestPolicy("shop", "p", policy.Deny, false, rules)}}}
			allow := policy.Steps{{Kind: policy.StepAllow, Enforced: true, Policies: []*policy.RequestPolicy{policy.NewRequestPolicy("shop", "p", policy.Allow, false, rules)}}}
			for _, q := range all {
				want := refHolds(policy.All{source, operation}, q)
				if got := deny.Decide(&q).Allowed(); got != (want == 0) {
					t.Fatalf("%#v with %+v: deny lets it through: %v, want %d", rules, q, got, want)
				}
				if got := allow.Decide(&q).Allowed(); got != (want == 1) {
					t.Fatalf("%#v with %+v: allow lets it through: %v, want %d", rules, q, got, want)
				}
			}
		}
	})
}

// TestSteps: the first step that denies decides and is named; what is dry only counts; audits are told.
func TestSteps(t *testing.T) {
	get := []policy.RequestRule{{Source: policy.All{}, Operation: policy.Field{Name: ":method", Text: policy.Text{Value: "GET"}}}}
	one := func(name string, action policy.Action, dry bool) []*policy.RequestPolicy {
		return []*policy.RequestPolicy{policy.NewRequestPolicy("shop", name, action, dry, get)}
	}
	steps := policy.Steps{
		{Kind: policy.StepAudit, Enforced: true, Policies: one("audit", policy.Allow, false)},
		{Kind: policy.StepDeny, Dry: one("dry-deny", policy.Deny, true)},
		{Kind: policy.StepAllow, Enforced: true, Policies: one("allow", policy.Allow, false), Dry: one("dry-allow", policy.Allow, true)},
	}
	d := steps.Decide(&policy.Request{Connection: conn(alice), Head: &policy.Head{Method: "GET"}})
	if !d.Allowed() || d.Policy != "shop/allow" || len(d.Audits) != 1 || len(d.DryRun) != 2 || d.DryRun[0].Verdict != policy.Denied || d.DryRun[1].Verdict != policy.Allowed {
		t.Errorf("a GET: %+v", d)
	}
	d = steps.Decide(&policy.Request{Connection: conn(alice), Head: &policy.Head{Method: "PUT"}})
	if d.Allowed() || d.Policy != "" || d.Reason != "no ALLOW policy matches; there are shop/allow" || len(d.Audits) != 0 || len(d.DryRun) != 1 || d.DryRun[0].Verdict != policy.Denied {
		t.Errorf("a PUT: %+v", d)
	}
	steps = append(policy.Steps{{Kind: policy.StepDeny, Enforced: true, Policies: one("deny", policy.Deny, false)}}, steps...)
	if d = steps.Decide(&policy.Request{Connection: conn(alice), Head: &policy.Head{Method: "GET"}}); d.Allowed() || d.Policy != "shop/deny" || len(d.Audits) != 0 {
		t.Errorf("a GET that is denied: %+v", d)
	}
	if d = (policy.Steps{{Kind: policy.StepAllow, Enforced: true}}).Decide(&policy.Request{}); d.Allowed() {
		t.Errorf("an ALLOW step without policies: %+v", d)
	}
	// In a place for connections the policy is never weaker than where it belongs.
	for action, allowed := range map[policy.Action]bool{policy.Deny: true, policy.Allow: false} {
		if p := one("p", action, false)[0].Policy; p.Matches(conn(alice)) != allowed {
			t.Errorf("action %v: matches a connection: %v", action, !allowed)
		}
	}
}

// TestTemplates: what templates match, and what is none.
func TestTemplates(t *testing.T) {
	for _, c := range []struct {
		text, path string
		want       bool
	}{
		{"/a/{*}", "/a/b", true}, {"/a/{*}", "/a/", false}, {"/a/{*}", "/a/b/c", false}, {"/a/{*}/c", "/a/b/c", true},
		{"/a/{**}", "/a/", true}, {"/a/{**}", "/a/b/c", true}, {"/a/{**}", "/a", false}, {"/{*}/x/{**}", "/1/x/2/3", true},
		{"/a/{**}/z", "/a/b/c/z", true}, {"/a/{**}/z", "/a/b/c/y", false}, {"/a.b/{*}", "/aXb/c", false}, {"/{**}", "/a\nb", true},
	} {
		template, err := policy.NewTemplate(c.text)
		if err != nil {
			t.Fatal(err)
		}
		rules := []policy.RequestRule{{Source: policy.All{}, Operation: policy.PathTemplate{Template: template}}}
		steps := policy.Steps{{Kind: policy.StepAllow, Enforced: true, Policies: []*policy.RequestPolicy{policy.NewRequestPolicy("n", "p", policy.Allow, false, rules)}}}
		if got := steps.Decide(&policy.Request{Head: &policy.Head{Path: c.path + "?q=/b"}}).Allowed(); got != c.want {
			t.Errorf("%s matches %s: %v", c.text, c.path, got)
		}
	}
	for _, text := range []string{"a/{*}", "/a{*}", "/{**}/{*}", "/{*}/{*}/{*}/{*}/{*}/{*}", "/a//{*}", "/{*}/*", "/{x}/{*}", "/ü/{*}"} {
		if _, err := policy.NewTemplate(text); err == nil {
			t.Errorf("%q is a template", text)
		}
	}
	for _, text := range []string{"(", "a)(b", "[z-a]"} {
		if _, err := policy.NewRegexp(text); err == nil {
			t.Errorf("%q is an expression", text)
		}
	}
}
