package enrolment

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/api"
)

func TestDecide(t *testing.T) {
	label := func(v string) map[string]string { return map[string]string{api.LabelDataplaneMode: v} }
	for name, test := range map[string]struct {
		pod       Pod
		namespace map[string]string
		want      Decision // Reason: a part of it; Problems: a part of each
	}{
		"no label":                    {want: Decision{Reason: "neither"}},
		"namespace":                   {namespace: label("ambient"), want: Decision{Capture: true, Reason: "namespace shop is labelled"}},
		"pod":                         {pod: Pod{Labels: label("ambient")}, want: Decision{Capture: true, Reason: "it is labelled"}},
		"pod opts out":                {pod: Pod{Labels: label("none")}, namespace: label("ambient"), want: Decision{Reason: "=none"}},
		"pod opts in":                 {pod: Pod{Labels: label("ambient")}, namespace: label("none"), want: Decision{Capture: true, Reason: "it is labelled"}},
		"namespace none":              {namespace: label("none"), want: Decision{Reason: "neither"}},
		"pod's value unknown":         {pod: Pod{Labels: label("Ambient")}, namespace: label("ambient"), want: Decision{Capture: true, Reason: "namespace", Problems: []string{`of the pod is "Ambient"`}}},
		"namespace's unknown":         {namespace: label(""), want: Decision{Reason: "neither", Problems: []string{`of the namespace shop is ""`}}},
		"host network":                {pod: Pod{HostNetwork: true, Labels: label("ambient")}, namespace: label("ambient"), want: Decision{Reason: "host's network"}},
		"excluded namespace":          {pod: Pod{Namespace: "kube-system", Labels: label("ambient")}, namespace: label("ambient"), want: Decision{Reason: "excluded"}},
		"sidecar":                     {pod: Pod{Annotations: map[string]string{api.AnnotationSidecarStatus: ""}}, namespace: label("ambient"), want: Decision{Reason: "sidecar"}},
		"ended":                       {pod: Pod{Ended: true}, namespace: label("ambient"), want: Decision{Reason: "ended"}},
		"bypass":                      {pod: Pod{Annotations: map[string]string{api.AnnotationBypassInbound: "true"}}, namespace: label("ambient"), want: Decision{Capture: true, BypassInbound: true, Reason: "namespace"}},
		"bypass false":                {pod: Pod{Annotations: map[string]string{api.AnnotationBypassInbound: "false"}}, namespace: label("ambient"), want: Decision{Capture: true, Reason: "namespace"}},
		"bypass malformed, so closed": {pod: Pod{Annotations: map[string]string{api.AnnotationBypassInbound: "yes please"}}, namespace: label("ambient"), want: Decision{Capture: true, Reason: "namespace", Problems: []string{`is "yes please"`}}},
	} {
		t.Run(name, func(t *testing.T) {
			if test.pod.Namespace == "" {
				test.pod.Namespace = "shop"
			}
			got := Decide(test.pod, test.namespace, []string{"kube-system"})
			if got.Capture != test.want.Capture || got.BypassInbound != test.want.BypassInbound || !strings.Contains(got.Reason, test.want.Reason) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if len(got.Problems) != len(test.want.Problems) {
				t.Fatalf("problems %q, want %q", got.Problems, test.want.Problems)
			}
			for i, p := range test.want.Problems {
				if !strings.Contains(got.Problems[i], p) {
					t.Errorf("problem %q, want %q", got.Problems[i], p)
				}
			}
		})
	}
}
