package policy

import "slices"

// Claim tests a claim of the token that a request has proved itself by: its text, or, of a list, one of its texts. A claim that is
// neither, such as a number, is in doubt. A request without a token, or whose token does not have the claim, does not have its text.
type Claim struct {
	// Path leads to the claim: its name, after the names of the objects that it is in. It is not empty.
	Path []string
	Text Text
}

func (t Claim) holds(r *Request, doubt bool) bool {
	if r.Head == nil {
		return doubt
	}
	var v any = r.Claims
	for _, name := range t.Path {
		fields, ok := v.(map[string]any)
		if !ok {
			return doubt // it is not as the test takes it to be
		}
		if v, ok = fields[name]; !ok || v == nil {
			return false
		}
	}
	switch v := v.(type) {
	case string:
		return t.Text.is(v)
	case []any:
		unclear := false
		for _, one := range v {
			text, ok := one.(string)
			if ok && t.Text.is(text) {
				return true
			}
			unclear = unclear || !ok
		}
		return unclear && doubt
	}
	return doubt
}

// LooksAtClaims reports whether a statement is, at some place, one about a claim.
func LooksAtClaims(e Expr) bool {
	switch e := e.(type) {
	case All:
		return slices.ContainsFunc(e, LooksAtClaims)
	case Any:
		return slices.ContainsFunc(e, LooksAtClaims)
	case Not:
		return LooksAtClaims(e.Expr)
	case Claim:
		return true
	}
	return false
}
