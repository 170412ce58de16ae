package meshconfig

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	s, err := Parse([]byte(`
trustDomain: mesh.example
trustDomainAliases: [old.example, cluster.local]
rootNamespace: policies
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
defaultHttpRetryPolicy: {attempts: 3, retryOn: connect-failure}
extensionProviders:
- name: authz
  envoyExtAuthzGrpc: {service: authz.auth.svc.cluster.local, port: 9000, failOpen: false}
accessLogFile: /dev/stdout
someday: {or: never}
`))
	if err != nil {
		t.Fatal(err)
	}
	if s.TrustDomain != "mesh.example" || s.RootNamespace != "policies" || !s.RegistryOnly {
		t.Errorf("got %+v", s)
	}
	if diff := cmp.Diff([]string{"old.example", "cluster.local"}, s.TrustDomainAliases); diff != "" {
		t.Errorf("aliases (-want +got):\n%s", diff)
	}
	if s.DefaultRetry.GetAttempts() != 3 || s.DefaultRetry.GetRetryOn() != "connect-failure" {
		t.Errorf("retry policy is %v", s.DefaultRetry)
	}
	if len(s.ExtensionProviders) != 1 || s.ExtensionProviders[0].GetName() != "authz" || s.ExtensionProviders[0].GetEnvoyExtAuthzGrpc().GetPort() != 9000 {
		t.Errorf("extension providers are %v", s.ExtensionProviders)
	}
}

func TestParseDefaults(t *testing.T) {
	for _, text := range []string{"", "{}", "\n# nothing\n", "outboundTrafficPolicy: {}", "outboundTrafficPolicy: {mode: ALLOW_ANY}", "trustDomain: \"\""} {
		s, err := Parse([]byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if diff := cmp.Diff(Default(), s); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"trustDomain: [a]":                                              "trustDomain",
		"trustDomain: Upper.example":                                    "Upper.example",
		"trustDomainAliases: [good.example, 'bad/alias']":               "bad/alias",
		"outboundTrafficPolicy: {mode: REGISTRY}":                       "REGISTRY",
		"outboundTrafficPolicy: {mode: 7}":                              "outboundTrafficPolicy",
		"a: b: c":                                                       "parse mesh settings",
		"trustDomain: a.example\ntrustDomain: b.example":                "already set",
		"extensionProviders: [{prometheus: {}}]":                        "no name",
		"extensionProviders: [{name: a, prometheus: {}}, {name: a}]":    `"a"`,
		"extensionProviders: [{name: a, envoyExtAuthzGrpc: {port: x}}]": "port",
	} {
		if s, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v and error %v, want one that mentions %q", text, s, err, want)
		}
	}
}

func TestFindUnsupported(t *testing.T) {
	got, err := FindUnsupported([]byte(`
trustDomain: mesh.example
trust_domain_aliases: [a]
outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}
enableTracing: true
access_log_file: /var/log/x
defaultConfig: {concurrency: 2}
defaultProviders: {tracing: [a], accessLogging: [b], metrics: [c]}
accessLogFormatt: x
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Unsupported{
		{"accessLogFormatt", "MeshConfig has no such field"},
		{"access_log_file", "waypoints write to no file; ignored. /dev/stdout is the pod's log"},
		{"defaultConfig", "not supported by ambit; ignored"},
		{"defaultProviders.metrics", "not supported by ambit; ignored"},
		{"enableTracing", "not supported by ambit; ignored"},
		{"outboundTrafficPolicy.mode", "ALLOW_ANY_DYNAMIC_DNS is not supported; treated as ALLOW_ANY"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("unsupported (-want +got):\n%s", diff)
	}
	if got, err := FindUnsupported([]byte("accessLogFile: /dev/stdout")); err != nil || len(got) != 0 {
		t.Errorf("the pod's log: %v, %v", got, err)
	}
	if got, err := FindUnsupported(nil); err != nil || len(got) != 0 {
		t.Errorf("nothing: %v, %v", got, err)
	}
	if _, err := FindUnsupported([]byte("[a")); err == nil {
		t.Error("malformed text is no error")
	}
}

// TestLoggers: what a pod's log is takes lines, and is there by itself.
func TestLoggers(t *testing.T) {
	s, err := Parse([]byte(`
accessLogFile: /dev/stdout
extensionProviders:
- {name: file, envoyFileAccessLog: {path: /var/log/x}}
- {name: json, envoyFileAccessLog: {logFormat: {labels: {a: b}}}}
- {name: otel, envoyOtelAls: {service: a.b.svc.cluster.local, port: 4317}}
- {name: spans, opentelemetry: {service: a.b.svc.cluster.local, port: 4317}}
`))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.DefaultLoggers, []string{BuiltinLogger}) {
		t.Errorf("defaults %v", s.DefaultLoggers)
	}
	for name, want := range map[string]struct{ known, usable, fault bool }{
		"envoy": {true, true, false}, "file": {true, false, true}, "json": {true, true, true}, "otel": {true, false, true}, "spans": {}, "nobody": {},
	} {
		l, known := LoggerNamed(s.ExtensionProviders, name)
		if known != want.known || known && (l.Usable != want.usable || (l.Fault != "") != want.fault) {
			t.Errorf("%s: %+v, %v", name, l, known)
		}
	}
	for text, want := range map[string][]string{
		"accessLogFile: /var/log/x": nil,
		"{accessLogFile: /dev/stdout, defaultProviders: {accessLogging: [json]}}": {"json"},
	} {
		if s, err := Parse([]byte(text)); err != nil || !slices.Equal(s.DefaultLoggers, want) {
			t.Errorf("%s: %v, %v", text, s.DefaultLoggers, err)
		}
	}
}
