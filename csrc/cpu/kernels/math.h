// Vector exp and tanh. Coefficients: minimax fits of this project, in double, rounded to float.
#pragma once

namespace vrga::cpu::VRGA_ISA {

// exp is 0 from -104 on.
VRGA_HOST_DEVICE Vec not_below_underflow(Vec x) {
  return max_keep_second(splat(-104.0f), x);
}

// exp(x) for x in [-104, 40] (or NaN), within about 1 ulp. x = n ln 2 + r with |r| <= ln 2 / 2,
// exp(r) = 1 + r + r^2 P(r).
VRGA_HOST_DEVICE Vec exponential(Vec x) {
  const Vec n = round_nearest(x * splat(1.44269504f));
  // ln 2 in two parts: the first has 11 bits, so that n * part is exact.
  Vec r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  const Vec square = r * r;
  const Vec low = fma(splat(1.66665183e-1f), r, splat(0.5f));
  Vec high = fma(splat(8.36895352e-3f), r, splat(4.16662041e-2f));
  high = fma(splat(1.39506022e-3f), square, high);
  return one_more_times_power_of_two(fma(fma(high, square, low), square, r), n);
}

// tanh(x): x + x^3 Q(x^2) near 0, (1 - e) / (1 + e) with e = exp(-2|x|) beyond.
VRGA_HOST_DEVICE Vec tanh(Vec x) {
  const Vec a = absolute(x);
  const Vec e = exponential(not_below_underflow(splat(-2.0f) * a));
  const Vec far = (splat(1.0f) - e) / (splat(1.0f) + e);
  const Vec u = a * a;
  Vec q = splat(-5.52863317e-3f);
  q = fma(q, u, splat(2.04833156e-2f));
  q = fma(q, u, splat(-5.36929679e-2f));
  q = fma(q, u, splat(1.33308998e-1f));
  q = fma(q, u, splat(-3.33332629e-1f));
  const Vec near = fma(a * u, q, a);
  return copy_sign(select_less(a, splat(0.65f), near, far), x);
}

}  // namespace vrga::cpu::VRGA_ISA
