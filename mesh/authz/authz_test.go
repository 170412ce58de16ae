package authz_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/mesh/authz"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

var update = flag.Bool("update", false, "rewrite the wanted results")

var mesh = authz.Mesh{RootNamespace: "istio-system", TrustDomains: []string{"cluster.local"}}

// read reads a policy of namespace shop from YAML, its spec and annotations.
func read(t testing.TB, text string) *authz.Policy {
	t.Helper()
	var in struct {
		Namespace   string            `json:"namespace"`
		Annotations map[string]string `json:"annotations"`
		Spec        any               `json:"spec"`
	}
	if err := yaml.Unmarshal([]byte(text), &in); err != nil {
		t.Fatal(err)
	}
	if in.Namespace == "" {
		in.Namespace = "shop"
	}
	return authz.Read(in.Namespace, "p", in.Annotations, in.Spec)
}

// TestGoldens: each story in testdata is a list of policies and what becomes of each.
func TestGoldens(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var out []txtar.File
			for _, f := range archive.Files {
				name, ok := strings.CutSuffix(f.Name, ".in")
				if !ok {
					continue
				}
				want := render(t, read(t, string(f.Data)))
				out = append(out, f, txtar.File{Name: name + ".want", Data: want})
			}
			got := txtar.Format(&txtar.Archive{Comment: archive.Comment, Files: out})
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			} else if !bytes.Equal(txtar.Format(archive), got) {
				t.Errorf("want\n%s\ngot\n%s", txtar.Format(archive), got)
			}
		})
	}
}

func render(t *testing.T, p *authz.Policy) []byte {
	t.Helper()
	var out bytes.Buffer
	c := p.Condition()
	fmt.Fprintf(&out, "%v %s: %s\n", c.Accepted, c.Reason, c.Message)
	if a := p.Authorization(mesh); a != nil {
		text, err := protojson.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if text, err = yaml.JSONToYAML(text); err != nil {
			t.Fatal(err)
		}
		out.Write(text)
		if _, err := policy.Compile(a); err != nil {
			t.Errorf("node proxies do not understand it: %v", err)
		}
	}
	return out.Bytes()
}

// TestNeverWeaker: for each value in the wrong place, an ALLOW policy allows nobody and a DENY policy denies everybody whom
// the good parts would.
func TestNeverWeaker(t *testing.T) {
	for _, part := range []string{
		`from: [{source: {principals: ["*x*"]}}]`,
		`from: [{source: {principals: ["a", ""]}}]`,
		`from: [{source: {ipBlocks: [10.0.0.0/33]}}]`,
		`from: [{source: {ipBlocks: [10.0.0.0/8, 300.1.1.1]}}]`,
		`from: [{source: {ipBlocks: ["::ffff:10.0.0.0/104"]}}]`,
		`from: [{source: {notIpBlocks: [x]}}]`,
		`from: [{source: {serviceAccounts: [a/b/c]}}]`,
		`from: [{source: {trustDomains: ["*.org"]}}]`,
		`from: [{source: {}}]`,
		`from: [{}]`,
		`from: [{source: {requestPrincipals: ["*"]}}]`,
		`from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]`,
		`to: [{operation: {ports: ["70000"]}}]`,
		`to: [{operation: {ports: ["http"]}}]`,
		`to: [{operation: {methods: [GET]}}]`,
		`to: [{operation: {methods: [GET]}}, {operation: {ports: ["1"]}}]`,
		`to: [{operation: {}}]`,
		`when: [{key: "request.headers[x]", values: [y]}]`,
		`when: [{key: source.color, values: [y]}]`,
		`when: [{key: source.ip}]`,
		`when: [{key: source.ip, values: [y]}]`,
		`unknown: [1]`,
		`from: 7`,
	} {
		for _, action := range []string{"ALLOW", "DENY"} {
			p := read(t, "spec: {action: "+action+", rules: [{"+part+"}]}")
			compiled, err := policy.Compile(p.Authorization(mesh))
			if err != nil {
				t.Fatalf("%s: %v", part, err)
			}
			c := policy.Connection{
				Peer:   identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "alice"},
				Source: netip.MustParseAddr("10.1.2.3"), Destination: netip.MustParseAddrPort("10.9.8.7:8080"),
			}
			if got := compiled.Matches(c); got != (action == "DENY") {
				t.Errorf("%s with %s matches: %v", action, part, got)
			}
			if len(p.Problems) == 0 || p.Condition().Accepted {
				t.Errorf("%s with %s: accepted, problems %v", action, part, p.Problems)
			}
		}
	}
}

// TestUnreadable: policies of which not even the outer parts can be read deny what they select.
func TestUnreadable(t *testing.T) {
	for _, spec := range []string{
		`7`, `{action: PERMIT}`, `{action: 3}`, `{selector: 3}`, `{selector: {matchLabels: {a: 3}}}`, `{selector: {matchNames: {a: b}}}`, `{rules: {}}`,
		`{mood: good}`, `{action: DENY, rules: 3}`, `{action: DENY, selector: 3, rules: []}`, `{action: ALLOW, selector: 3, rules: [{}]}`,
	} {
		p := read(t, "spec: "+spec)
		compiled, err := policy.Compile(p.Authorization(mesh))
		if err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		set := policy.Set{Namespace: policy.NewGroup([]*policy.Policy{compiled})}
		d := set.Evaluate(policy.Connection{Source: netip.MustParseAddr("10.1.2.3"), Destination: netip.MustParseAddrPort("10.9.8.7:8080")})
		if c := p.Condition(); d.Verdict != policy.Denied || c.Accepted || c.Reason != authz.ReasonInvalid {
			t.Errorf("%s: %+v, %+v", spec, d, c)
		}
	}
}

func TestAliases(t *testing.T) {
	m := authz.Mesh{TrustDomains: []string{"new.example", "old.example"}}
	for _, tt := range []struct{ action, source, want string }{
		{"ALLOW", "principals: [old.example/ns/a/sa/b]", "new.example/ns/a/sa/b old.example/ns/a/sa/b"},
		{"ALLOW", "principals: [spiffe://new.example/ns/a/*]", "new.example/ns/a/* old.example/ns/a/*"},
		{"ALLOW", "principals: [cluster.local/ns/a/sa/b]", "new.example/ns/a/sa/b old.example/ns/a/sa/b"},
		{"DENY", "principals: [cluster.local/ns/a/sa/b]", "cluster.local/ns/a/sa/b new.example/ns/a/sa/b old.example/ns/a/sa/b"},
		{"ALLOW", "notPrincipals: [cluster.local/ns/a/sa/b]", "cluster.local/ns/a/sa/b new.example/ns/a/sa/b old.example/ns/a/sa/b"},
		{"ALLOW", "principals: [third.example/ns/a/sa/b, 'old.exam*', '*/sa/b', '*']", "third.example/ns/a/sa/b old.exam* */sa/b *"},
		{"ALLOW", "trustDomains: [old.example]", "new.example/* old.example/*"},
	} {
		a := read(t, "spec: {action: "+tt.action+", rules: [{from: [{source: {"+tt.source+"}}]}]}").Authorization(m)
		match := a.GetRules()[0].GetClauses()[0].GetMatches()[0]
		var got []string
		for _, s := range append(match.GetPrincipals(), match.GetNotPrincipals()...) {
			switch v := s.GetMatchType().(type) {
			case *security.StringMatch_Exact:
				got = append(got, v.Exact)
			case *security.StringMatch_Prefix:
				got = append(got, v.Prefix+"*")
			case *security.StringMatch_Suffix:
				got = append(got, "*"+v.Suffix)
			default:
				got = append(got, "*")
			}
		}
		if text := strings.Join(got, " "); text != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.action, tt.source, text, tt.want)
		}
	}
}

func TestEqual(t *testing.T) {
	const spec = "spec: {action: DENY, rules: [{}]}"
	a := read(t, spec)
	for text, want := range map[string]bool{
		spec: true, spec + "\nannotations: {other: x}": true, "spec: {action: DENY}": false,
		spec + "\nannotations: {istio.io/dry-run: 'true'}": false, spec + "\nnamespace: other": false,
	} {
		if got := a.Equal(read(t, text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// FuzzRead: whatever the text, what comes out is understood by node proxies, and no problem goes with a policy that is open.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"action": "DENY", "rules": [{}]}`, `{"rules": [{"from": [{"source": {"principals": ["*"]}}], "to": [{"operation": {"ports": ["1", "x"]}}]}]}`,
		`{"selector": {"matchLabels": {"a": "b"}}, "rules": [{"when": [{"key": "source.ip", "notValues": ["fd00::/8"]}]}]}`,
	} {
		f.Add([]byte(seed), "true")
	}
	f.Fuzz(func(t *testing.T, text []byte, dryRun string) {
		var spec any
		if json.Unmarshal(text, &spec) != nil {
			return
		}
		p := authz.Read("shop", "p", map[string]string{authz.AnnotationDryRun: dryRun}, spec)
		if c := p.Condition(); c.Accepted != (p.Enforced() && len(p.Problems) == 0) || c.Message == "" {
			t.Fatalf("condition %+v, problems %v", c, p.Problems)
		}
		a := p.Authorization(mesh)
		if a == nil {
			return
		}
		compiled, err := policy.Compile(a)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if n := len(compiled.Dump().Rules); n > 0 && p.Action == authz.Allow && broken(p) {
			t.Fatalf("%s: it cannot be read, and %d of its rules allow something", text, n)
		}
	})
}

// broken reports whether a problem is of the policy as a whole.
func broken(p *authz.Policy) bool {
	for _, problem := range p.Problems {
		if !strings.HasPrefix(problem.Where, "rules[") && !strings.HasPrefix(problem.Where, "annotation") {
			return true
		}
	}
	return false
}
