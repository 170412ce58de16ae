package authz_test

import (
	"encoding/json"
	"fmt"
	"testing"
)

// TestClaims: whether a rule about tokens, in an ALLOW policy, matches a request. A DENY policy of the same rule denies the same.
func TestClaims(t *testing.T) {
	const token = `{"iss": "https://login.example/shop", "sub": "alice", "aud": ["web", "app"], "azp": "cart", "scope": ["read", "write"],
		"realm": {"roles": ["admin", 7], "tier": "gold", "n": 3}, "example.com/team": "red", "empty": "", "null": null}`
	principal := func(v string) string { return `from: [{source: {requestPrincipals: ["` + v + `"]}}]` }
	when := func(key, values string) string { return `when: [{key: "` + key + `", ` + values + `}]` }
	for _, c := range []struct {
		rule, token string
		want        bool
	}{
		{principal("*"), token, true},
		{principal("*"), ``, false},
		{principal("*"), `{"iss": "https://login.example/shop"}`, false},
		{principal("*"), `{"iss": "x", "sub": ""}`, false},
		{`from: [{source: {notRequestPrincipals: ["*"]}}]`, token, false},
		{`from: [{source: {notRequestPrincipals: ["*"]}}]`, ``, true},
		{principal("https://login.example/shop/alice"), token, true},
		{principal("https://login.example/shop/ali"), token, false},
		{principal("https://login.example/shop/ali*"), token, true},
		{principal("https://login.example/shop/*"), token, true},
		{principal("https://login.example/shops/*"), token, false},
		{principal("*/alice"), token, true},
		{principal("*/shop/alice"), token, true},
		{principal("*alice"), token, true},
		{principal("x*"), `{"iss": "xyz", "sub": "a"}`, true},
		{when("request.auth.principal", `values: ["https://login.example/shop/alice"]`), token, true},
		{when("request.auth.audiences", `values: [app]`), token, true},
		{when("request.auth.audiences", `values: [other]`), token, false},
		{when("request.auth.presenter", `values: ["ca*"]`), token, true},
		{when("request.auth.claims[scope]", `values: [write]`), token, true},
		{when("request.auth.claims[scope]", `notValues: [write]`), token, false},
		{when("request.auth.claims[scope]", `notValues: [write]`), ``, true},
		{when("request.auth.claims[realm][roles]", `values: [admin]`), token, true},
		{when("request.auth.claims[realm][tier]", `values: ["g*"]`), token, true},
		{when("request.auth.claims[realm][other]", `values: ["*"]`), token, false},
		{when("request.auth.claims[example.com/team]", `values: [red]`), token, true},
		{when("request.auth.claims[empty]", `values: ["*"]`), token, false},
		{when("request.auth.claims[null]", `values: ["*"]`), token, false},
		{when("request.auth.claims[iss]", `values: ["https://login.example/shop"]`), token, true},
	} {
		for action, want := range map[string]bool{"ALLOW": c.want, "DENY": !c.want} {
			if got := passesToken(t, action, c.rule, c.token); got != want {
				t.Errorf("%s %s with %s: passes: %v", action, c.rule, c.token, got)
			}
		}
	}
	// What is no text and has none counts against whoever asks.
	for _, rule := range []string{
		when("request.auth.claims[realm][n]", `values: ["3"]`), when("request.auth.claims[realm][n]", `notValues: ["4"]`),
		when("request.auth.claims[realm][roles]", `values: [other]`), when("request.auth.claims[realm][roles]", `notValues: [other]`),
		when("request.auth.claims[realm]", `values: ["*"]`), when("request.auth.claims[sub][x]", `notValues: ["y"]`),
	} {
		for _, action := range []string{"ALLOW", "DENY"} {
			if passesToken(t, action, rule, token) {
				t.Errorf("%s %s: lets a request through", action, rule)
			}
		}
	}
}

func passesToken(t *testing.T, action, rule, token string) bool {
	t.Helper()
	p := read(t, fmt.Sprintf("spec: {%s, action: %s, rules: [{%s}]}", attach, action, rule))
	if len(p.Requests.Problems) > 0 {
		t.Errorf("%s: %v", rule, p.Requests.Problems)
	}
	r := request("shop/sa/cart", "GET", "web", "/")
	if token != "" {
		if err := json.Unmarshal([]byte(token), &r.Claims); err != nil {
			t.Fatal(err)
		}
	}
	return passes(t, p, r)
}
